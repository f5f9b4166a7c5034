"""One check of a manifest before a build: the recipe behind `python -m hfprep check`.

Takes `CheckOptions`, gives `Preflight` and, if wanted, a manifest of the lines that a build would take. Reads text and
headers in many processes; decodes all audio only with `decode`.
"""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path

from hfprep.errors import ConfigError, HfprepError, Reason, RejectedSample
from hfprep.inputs.audio.decode import TARGET_SAMPLING_RATE
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.opening import open_source
from hfprep.inputs.manifest.rows import AudioFinder, RawRow, parse_line
from hfprep.inputs.text.language import language_option
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.io.object_storage import store_of, url_of
from hfprep.pipeline.devices import choose_device, choose_workers
from hfprep.pipeline.inspection import Stores
from hfprep.pipeline.intake import SampleLimits
from hfprep.recipes.indextts2.checkpoints import NUM_LATENTS, POSITION_ROWS
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts2.feature_model import MIN_FRAMES
from hfprep.schema import Rejection, Utterance
from hfprep.tools.check.estimates import Estimate, Work, estimate
from hfprep.tools.check.findings import Preflight
from hfprep.tools.check.fixing import FixedManifest
from hfprep.tools.check.inspecting import Inspection, Inspector, InspectorSettings, inspect_in_process, start_process

CHUNK_ROWS = 64
FEW_ROWS = 2000  # below, starting processes takes longer than they save
WAITING_CHUNKS = 4  # for each worker
TIMED_FILES = 8
# The published IndexTTS-2 model, where no config is given.
PUBLISHED_TEXT_TOKENS, PUBLISHED_CODES, PUBLISHED_MODEL_DIM = 600, 1815, 1280

Outcome = tuple[int, RawRow, Utterance | None, Inspection | Rejection]


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What to check. No tokenizer: texts are not looked at. No config: the published model's limits hold."""

    manifest: Path
    tokenizer: Path | None = None
    models: Path | None = None
    config: Path | None = None
    language: str | None = None
    map: str | None = None
    audio_root: Path | None = None
    audio_sr: int = TARGET_SAMPLING_RATE
    max_samples: int | None = None
    drop_overlong: bool = False
    decode: bool = False
    workers: int = 0
    device: str = "auto"
    fix: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "language", language_option(self.language))

    @property
    def named_stores(self) -> frozenset[str]:
        """The object stores that the user named."""
        urls = (url_of(place) for place in (self.manifest, self.audio_root) if place is not None)
        return frozenset(store_of(url) for url in urls if url is not None)

    @property
    def tokenizer_path(self) -> Path | None:
        if self.tokenizer is None and self.models is not None:
            return self.models / "bpe.model"
        return self.tokenizer


@dataclass(frozen=True)
class CheckResult:
    """The findings, how long a build is expected to take (None: nothing to build), and all rejections' lines."""

    findings: Preflight
    expected: Estimate | None
    rejected_lines: dict[int, Reason] = field(default_factory=dict)


def check(options: CheckOptions, progress: Callable[[int], None] = lambda _: None) -> CheckResult:
    """Look at every line of a manifest; `progress` is called with the number of lines looked at.

    Raises ConfigError or CheckpointError where the manifest, the tokenizer or a config cannot be read, before any line
    is looked at.
    """
    model = _model_config(options)
    work = Work.of(model, options.models / "w2v-bert-2.0" / "config.json" if options.models else None)
    positions = SampleLimits(
        min_frames=MIN_FRAMES,
        max_frames=2 * POSITION_ROWS,
        max_text_tokens=model.max_text_tokens if model else PUBLISHED_TEXT_TOKENS,
        max_codes=model.max_mel_tokens if model else PUBLISHED_CODES,
    )
    findings = Preflight(model.model_dim if model else PUBLISHED_MODEL_DIM, NUM_LATENTS, positions)
    rejected: dict[int, Reason] = {}
    timed: list[str] = []
    with ExitStack() as stack:
        fixed = None
        if options.fix is not None:
            fields = FieldMap.parse(options.map)
            fixed = stack.enter_context(FixedManifest(options.fix, fields, options.audio_root))
        for line, raw, utterance, found in _outcomes(options, positions, findings, stack):
            if isinstance(found, Rejection):
                findings.reject(found)
                rejected[line] = found.reason
            else:
                assert utterance is not None
                findings.accept(utterance, found)
                if len(timed) < TIMED_FILES:
                    timed.append(utterance.path)
                if fixed is not None:
                    fixed.add(raw, utterance)
            progress(findings.accepted + findings.rejected.total())
        if not findings.lines_read:
            raise ConfigError(f"the manifest {str(options.manifest)!r} is empty; give one JSON object a line")
    expected = None
    if findings.accepted:
        workers = choose_workers(options.workers)
        expected = estimate(
            findings.seconds.total,
            findings.accepted,
            timed,
            work=work,
            device=choose_device(options.device),
            workers=workers,
        )
    return CheckResult(findings, expected, rejected)


def _model_config(options: CheckOptions) -> ModelConfig | None:
    if options.config is not None:
        return ModelConfig.read(options.config)
    if options.models is None:
        return None
    if not options.models.is_dir():
        raise ConfigError(f"--models {options.models}: there is no such folder")
    return ModelConfig.read(options.models / "config.yaml")


def _outcomes(
    options: CheckOptions, positions: SampleLimits, findings: Preflight, stack: ExitStack
) -> Iterator[Outcome]:
    """The outcome of each line, in order; lines that need no look at files come with their rejection at once."""
    limits = positions if options.drop_overlong else SampleLimits(
        min_frames=positions.min_frames, max_frames=positions.max_frames
    )  # fmt: skip
    settings = InspectorSettings(
        tokenizer=options.tokenizer_path,
        limits=limits,
        via_sampling_rate=None if options.audio_sr == TARGET_SAMPLING_RATE else options.audio_sr,
        decode=options.decode,
        named_stores=options.named_stores,
    )
    tokenizer = TextTokenizer(settings.tokenizer) if settings.tokenizer is not None else None
    lines = _lines(options, findings)
    first = list(islice(lines, FEW_ROWS))
    workers = choose_workers(options.workers)
    pool: Executor
    inspect: Callable[[list[Utterance]], list[Inspection | Rejection]]
    if len(first) < FEW_ROWS:
        inspect = partial(_inspect_here, settings, tokenizer)
        pool = stack.enter_context(ThreadPoolExecutor(workers))
    else:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([inspect_in_process.__module__])
        pool = stack.enter_context(
            ProcessPoolExecutor(workers, mp_context=context, initializer=start_process, initargs=(settings,))
        )
        inspect = inspect_in_process
    yield from _in_order(pool, inspect, chain(first, lines), WAITING_CHUNKS * workers)


def _lines(options: CheckOptions, findings: Preflight) -> Iterator[tuple[int, RawRow, Utterance | Rejection]]:
    """Every line up to the cap, parsed; an id that has been seen is a rejection, as in a build."""
    source, finder = (
        open_source(options.manifest, FieldMap.parse(options.map)),
        AudioFinder(options.manifest, options.audio_root),
    )
    seen: set[str] = set()
    taken, stores = 0, Stores(options.named_stores)
    for number, raw in source.lines():
        findings.lines_read += 1
        if options.max_samples is not None and taken >= options.max_samples:
            findings.capped += 1
            continue
        row = parse_line(number, raw, finder, options.language)
        if isinstance(row, Utterance) and row.id in seen:
            message = f"id {row.id!r} stands on an earlier line already; give each row its own"
            row = Rejection(number, row.id, Reason.DUPLICATE_ID, message)
        elif isinstance(row, Utterance):
            seen.add(row.id)
            taken += options.max_samples is None or _has_audio(row, stores)
        yield number, raw, row


def _has_audio(row: Utterance, stores: Stores) -> bool:
    """Whether the audio is there: a row without counts for no --max-samples."""
    try:
        stores.identify(row.path, by_content=False)
    except RejectedSample:
        return False
    return True


def _in_order(
    pool: Executor,
    inspect: Callable[[list[Utterance]], list[Inspection | Rejection]],
    lines: Iterator[tuple[int, RawRow, Utterance | Rejection]],
    max_waiting: int,
) -> Iterator[Outcome]:
    waiting: deque[tuple[list[tuple[int, RawRow, Utterance | Rejection]], Future[list[Inspection | Rejection]]]] = (
        deque()
    )
    while True:
        while len(waiting) < max_waiting and (chunk := list(islice(lines, CHUNK_ROWS))):
            rows = [row for _, _, row in chunk if isinstance(row, Utterance)]
            waiting.append((chunk, pool.submit(inspect, rows)))
        if not waiting:
            return
        chunk, future = waiting.popleft()
        try:
            found = iter(future.result())
        except BrokenProcessPool as error:
            first, last = chunk[0][0], chunk[-1][0]
            message = f"a process that read lines {first} to {last} or thereabouts died; look at their audio files"
            raise HfprepError(message) from error
        for number, raw, row in chunk:
            if isinstance(row, Rejection):
                yield number, raw, None, row
            else:
                yield number, raw, row, next(found)


def _inspect_here(
    settings: InspectorSettings, tokenizer: TextTokenizer | None, rows: list[Utterance]
) -> list[Inspection | Rejection]:
    inspector = Inspector(settings, tokenizer)
    return [inspector.inspect(row) for row in rows]
