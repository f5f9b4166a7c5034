"""Makes docs/images/report.png, a screenshot of the top of the demo's report in Chromium.

`python scripts/report_picture.py [FOLDER]` makes the demo in FOLDER (default: demo), or uses an existing one. It needs
selenium, Chromium and its driver.
"""

import base64
import contextlib
import shutil
import sys
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from hfprep.cli.app import app
from hfprep.tools.report.writing import write_report

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "report.png"
WIDTH, HEIGHT = 1100, 1060
NUM_SAMPLES = 300


def draw(page: Path) -> bytes:
    """The top of a report as a PNG."""
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    chrome = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chrome.get(page.absolute().as_uri())
        while not chrome.execute_script("return document.documentElement.dataset.drawn"):
            time.sleep(0.1)
        time.sleep(1)  # until the charts have the page's colours
        return base64.b64decode(chrome.execute_cdp_cmd("Page.captureScreenshot", {})["data"])
    finally:
        chrome.quit()


def main() -> None:
    """Make the demo if necessary, and take the screenshot."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo").absolute()
    if not folder.is_dir():
        app(["demo", str(folder), "--num-samples", str(NUM_SAMPLES)], standalone_mode=False)
    page = folder / "report.html"
    with contextlib.chdir(folder.parent):  # the page shows the folder as given
        write_report(Path(folder.name, "features"), page)
    PICTURE.write_bytes(draw(page))


if __name__ == "__main__":
    main()
