"""Checks a manifest before a build: the implementation of `python -m hfprep check`.

Takes `CheckOptions`; returns the findings and, if requested, writes a manifest of the lines that a build would accept.
Reads text and headers in several processes; decodes all audio only with `decode`.
"""

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice

from hfprep.errors import ConfigError, HfprepError, Reason, RejectedSample
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.opening import open_source
from hfprep.inputs.manifest.rows import AudioFinder, RawRow, duplicate_id, parse_line
from hfprep.pipeline.devices import choose_device, choose_workers
from hfprep.pipeline.engines.spec import ExtractorSpec
from hfprep.pipeline.filters import SampleOptions
from hfprep.pipeline.inspection import identify_audio
from hfprep.pipeline.intake import SampleLimits
from hfprep.pipeline.intake_processes import fork_server
from hfprep.pipeline.stores import Stores
from hfprep.recipes.base import Outline, Recipe, via_rate
from hfprep.recipes.registry import choose_recipe
from hfprep.schema import Rejection, Utterance
from hfprep.tools.check.estimates import Estimate, estimate, load_of_others, precision_to_time
from hfprep.tools.check.findings import Preflight
from hfprep.tools.check.fixing import FixedManifest
from hfprep.tools.check.inspecting import Inspection, Inspector, inspect_in_process, start_process
from hfprep.tools.check.options import CheckOptions

CHUNK_ROWS, FEW_ROWS_CHUNK = 64, 4
FEW_ROWS = 2000  # for fewer rows, starting processes does not pay off
WAITING_CHUNKS = 4  # per worker
DRAWN_ROWS = 128  # a random sample, some of which are computed to estimate the time of a build

Line = tuple[int, RawRow, Utterance | Rejection]
Outcome = tuple[Line, Inspection | Rejection]
Inspect = Callable[[list[Utterance]], list[Inspection | Rejection]]


@dataclass(frozen=True)
class CheckResult:
    """The findings, the lines of all rejections, and the estimated time of a build.

    `problem` is why there is no estimate: the reason why a build would not start.
    """

    findings: Preflight
    rejected_lines: dict[int, Reason] = field(default_factory=dict)
    expected: Estimate | None = None
    problem: str | None = None


def check(options: CheckOptions, progress: Callable[[int], None] = lambda _: None) -> CheckResult:
    """Check every line of a manifest; `progress` is called with the number of checked lines.

    Raises ConfigError or CheckpointError if the manifest, the tokenizer or a config cannot be read, before any line is
    checked.
    """
    load = load_of_others()
    chosen = choose_recipe(options.recipe, options)
    known = chosen.outline(options)
    findings = Preflight(known.schema)
    rejected: dict[int, Reason] = {}
    drawn = _Drawn()
    with ExitStack() as stack:
        fixed = None
        if options.fix is not None:
            fields = FieldMap.parse(options.map)
            fixed = stack.enter_context(FixedManifest(options.fix, fields, options.audio_root))
        for (line, raw, row), found in _outcomes(options, known, findings, stack, progress):
            if isinstance(found, Rejection):
                findings.reject(found)
                rejected[line] = found.reason
                continue
            assert isinstance(row, Utterance)
            findings.accept(row, found)
            drawn.add(row, found.num_frames)
            if fixed is not None:
                fixed.add(raw, row)
        if not findings.lines_read:
            raise ConfigError(f"the manifest {str(options.manifest)!r} is empty; give one JSON object per line")
    if not findings.accepted:
        return CheckResult(findings, rejected)
    try:
        expected = estimate(findings.num_frames, drawn.rows, _extractor(chosen, options), load)
    except HfprepError as error:
        return CheckResult(findings, rejected, problem=str(error))
    return CheckResult(findings, rejected, expected)


def _extractor(chosen: Recipe, options: CheckOptions) -> ExtractorSpec:
    """The extractor of a build. Raises ConfigError and CheckpointError if models are missing."""
    models, device = chosen.find(options, fetch=False), choose_device(options.device)
    return ExtractorSpec(
        model_set=models,
        staging=None,
        need=models.schema.all_groups,
        device=str(device),
        precision=precision_to_time(models, device, options.precision),
        workers=choose_workers(options.workers),
        samples=SampleOptions.of(options, via_rate(options.audio_sr, models.audio)),
    )


@dataclass
class _Drawn:
    """A uniform random sample of all rows with their frames, in random order."""

    rows: list[tuple[Utterance, int]] = field(default_factory=list)
    seen: int = 0
    generator: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, row: Utterance, num_frames: int) -> None:
        self.seen += 1
        place = self.generator.randrange(self.seen)
        if len(self.rows) < DRAWN_ROWS:
            self.rows.insert(place, (row, num_frames))
        elif place < DRAWN_ROWS:
            self.rows[place] = row, num_frames


def _outcomes(
    options: CheckOptions, known: Outline, findings: Preflight, stack: ExitStack, progress: Callable[[int], None]
) -> Iterator[Outcome]:
    """The outcome of each line, in order. Lines that cannot be parsed are rejected without inspection."""
    limits = SampleLimits(
        schema=known.schema,
        min_frames=known.min_frames,
        max_frames=known.max_frames,
        options=SampleOptions.of(options, via_rate(options.audio_sr, known.audio)),
        num_codes=known.num_codes,
    )
    make_inspector = partial(
        Inspector, text_encoder=known.text_encoder, audio=known.audio, limits=limits, decode=options.decode
    )
    lines = _lines(options, findings)
    first = list(islice(lines, FEW_ROWS))
    workers = choose_workers(options.workers)
    pool: Executor
    inspect: Inspect = inspect_in_process
    chunk_rows = CHUNK_ROWS
    if len(first) < FEW_ROWS:
        chunk_rows = FEW_ROWS_CHUNK
        inspect = partial(_inspect_here, make_inspector)
        pool = stack.enter_context(ThreadPoolExecutor(workers))
    else:
        context = fork_server(inspect_in_process.__module__)
        pool = stack.enter_context(
            ProcessPoolExecutor(workers, mp_context=context, initializer=start_process, initargs=(make_inspector,))
        )
    yield from _in_order(pool, inspect, chain(first, lines), chunk_rows, WAITING_CHUNKS * workers, progress)


def _lines(options: CheckOptions, findings: Preflight) -> Iterator[Line]:
    """Every line up to the cap, parsed. Duplicate ids are rejected, as in a build."""
    finder = AudioFinder(options.manifest, options.audio_root)
    first_lines: dict[str, int] = {}
    taken, stores = 0, Stores(options.named_stores)
    for number, raw in open_source(options.manifest, FieldMap.parse(options.map)):
        findings.lines_read += 1
        if options.max_samples is not None and taken >= options.max_samples:
            findings.capped += 1
            continue
        row = parse_line(number, raw, finder, options.language)
        if isinstance(row, Utterance) and row.id in first_lines:
            row = duplicate_id(number, row.id, first_lines[row.id])
        elif isinstance(row, Utterance):
            first_lines[row.id] = number
            taken += options.max_samples is None or _has_audio(row, stores)
        yield number, raw, row


def _has_audio(row: Utterance, stores: Stores) -> bool:
    """Whether the audio exists: rows without audio do not count for --max-samples."""
    try:
        identify_audio(row.path, by_content=False, stores=stores)
    except RejectedSample:
        return False
    return True


def _in_order(
    pool: Executor,
    inspect: Inspect,
    lines: Iterator[Line],
    chunk_rows: int,
    max_waiting: int,
    progress: Callable[[int], None],
) -> Iterator[Outcome]:
    waiting: deque[tuple[list[Line], Future[list[Inspection | Rejection]]]] = deque()
    finished, lock = 0, threading.Lock()

    def count(lines: int, _: object) -> None:
        """Count finished lines, in any order, so that the displayed progress does not stall."""
        nonlocal finished
        with lock:
            finished += lines
            progress(finished)

    while True:
        while len(waiting) < max_waiting and (chunk := list(islice(lines, chunk_rows))):
            rows = [row for _, _, row in chunk if isinstance(row, Utterance)]
            future = pool.submit(inspect, rows)
            future.add_done_callback(partial(count, len(chunk)))
            waiting.append((chunk, future))
        if not waiting:
            return
        chunk, future = waiting.popleft()
        try:
            found = iter(future.result())
        except BrokenProcessPool as error:
            first, last = chunk[0][0], chunk[-1][0]
            message = f"a process that read lines {first} to {last} (approximately) died; check their audio files"
            raise HfprepError(message) from error
        for line in chunk:
            row = line[2]
            yield line, row if isinstance(row, Rejection) else next(found)


def _inspect_here(make_inspector: Callable[[], Inspector], rows: list[Utterance]) -> list[Inspection | Rejection]:
    inspector = make_inspector()
    return [inspector.inspect(row) for row in rows]
