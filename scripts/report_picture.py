"""Draws docs/images/report.png: the top of the demo's own report, as Chromium shows it.

`python scripts/report_picture.py [FOLDER]` makes the demo in FOLDER (demo), or takes the one that is there.
It needs selenium, Chromium and its driver.
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
        time.sleep(1)  # the charts take the page's colours
        return base64.b64decode(chrome.execute_cdp_cmd("Page.captureScreenshot", {})["data"])
    finally:
        chrome.quit()


def main() -> None:
    """Make what is missing, and draw."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo").absolute()
    if not folder.is_dir():
        app(["demo", str(folder), "--num-samples", str(NUM_SAMPLES)], standalone_mode=False)
    page = folder / "report.html"
    with contextlib.chdir(folder.parent):  # the page names the folder as it is given
        write_report(Path(folder.name, "features"), page)
    PICTURE.write_bytes(draw(page))


if __name__ == "__main__":
    main()
