"""What a build would do: samples, hours, batches, padding, bytes, and how the work is divided among processes.

Takes a BuildConfig and plans as the build does, with a copy of the state and without loading a model. Lengths come from
the manifest's durations or from file headers, so they can differ by a frame from the decoded length. Writes nothing
into the output directory.
"""

import heapq
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from hfprep.errors import ConfigError, RejectedSample
from hfprep.io.chunks import chunks_of
from hfprep.io.npy_format import npy_size
from hfprep.io.object_storage import url_of
from hfprep.pipeline.batching import BatchLimits, FrameBudget, batches, padded_frames
from hfprep.pipeline.building import plan_options
from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.devices import choose_device, choose_workers, device_memory
from hfprep.pipeline.engines.choice import tenants
from hfprep.pipeline.engines.local import choose_num_processes, worker_device
from hfprep.pipeline.engines.work_units import cut
from hfprep.pipeline.inputs import Inputs, find_inputs
from hfprep.pipeline.intake import expected_seconds
from hfprep.pipeline.plan import Plan
from hfprep.pipeline.planning import Planner
from hfprep.pipeline.precision_choice import without_measuring
from hfprep.recipes.base import frames_in
from hfprep.store.fingerprints import Fingerprinter
from hfprep.store.layout import NpyOutput, OutputFolder
from hfprep.store.listing import Entry
from hfprep.store.remote import fetch_state
from hfprep.store.state import State, copy_state

BLOCK_BYTES = 4096  # allocation unit of common file systems
TEXTS_TRIED = 64
MEASURED_TOGETHER = 256  # rows that one thread measures at a time


@dataclass(frozen=True)
class Share:
    """The work of one process if all are equally fast."""

    process: int
    device: str
    shards: int
    samples: int
    hours: float


@dataclass(frozen=True)
class Preview:
    """What a build would do. `unreadable` are samples whose length is in no header; most of them will be rejected.

    `hours` and everything after it concern the pending samples only; `padding` is the share of padded frames.
    """

    output_dir: Path
    lines_read: int
    rejected: dict[str, int]
    capped: int
    reused: int
    pending: int
    unreadable: int
    hours: float
    batches: int
    padding: float
    num_bytes: int
    disk_bytes: int
    shares: list[Share]


@dataclass(frozen=True, slots=True)
class _Sample:
    """The expected cost of a pending sample."""

    seconds: float
    num_frames: int
    need: frozenset[str]
    readable: bool


class _NoListing:
    """A listing that ignores the samples."""

    def add(self, entry: Entry) -> None:
        del entry


def preview(config: BuildConfig) -> Preview:
    """Plan a build and return what it would do; raises what the build would raise before it reads audio."""
    with ExitStack() as stack:
        private = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hfprep-dry-run-")))
        url = url_of(config.output_dir)
        folder = OutputFolder(config.output_dir)
        folder.url = url
        known = folder.state_file
        hashes = folder.private / "sha256.json"
        folder.private, folder.work = private, private / "work"
        folder.work.mkdir()
        if known.is_file():
            copy_state(known, private / known.name)
        if url is not None:
            fetch_state(url, private / known.name)
        if hashes.is_file():
            (private / hashes.name).write_bytes(hashes.read_bytes())
        inputs = find_inputs(config, folder)
        output = NpyOutput(folder.root, inputs.schema)
        output.private, output.work = folder.private, folder.work
        state = State(private / known.name, inputs.schema)
        stack.callback(state.close)
        config = without_measuring(config, inputs, state)
        options = plan_options(config, inputs)
        fingerprinter = Fingerprinter(inputs.schema, inputs.settings(config))
        planner = Planner(
            output, state, fingerprinter, options, _NoListing(), artifacts=state.get("packed_format") is None
        )
        plan = planner.plan(config.manifest)
        if not plan.counts.lines_read and config.part is None:
            raise ConfigError(f"--manifest {str(config.manifest)!r} is empty; give one JSON object per line")
        return _Estimate(config, inputs, plan).preview(output.root, state.rejection_counts())


class _Estimate:
    """Adds up the expected cost of the pending rows of a plan."""

    def __init__(self, config: BuildConfig, inputs: Inputs, plan: Plan) -> None:
        self.config = config
        self.inputs = inputs
        self.plan = plan
        self.num_processes = choose_num_processes(config.num_processes, config.device)
        device = choose_device(config.device)
        memory = device_memory(device, tenants(config.device, self.num_processes))
        self.limits = BatchLimits.choose(config.batch_size, memory, inputs.schema.frame_rate)
        self.packed = inputs.models.packs(device)
        self.text_len = self.mean_text_len()
        self.num_batches = self.frames = self.padded = self.num_bytes = self.disk_bytes = self.unreadable = 0
        self.shard_seconds: list[float] = []
        self.shard_samples: list[int] = []

    def preview(self, root: Path, rejected: dict[str, int]) -> Preview:
        """Go through the work units as the engine would assign them."""
        counts = self.plan.counts
        with ThreadPoolExecutor(choose_workers(self.config.workers)) as pool:
            for unit in cut(self.plan.pending_positions(), self.num_processes):
                rows = self.plan.take(unit.rows, ["duration", "path", "need", "audio_bytes"]).to_pydict()
                columns = zip(
                    rows["duration"], map(os.fsdecode, rows["path"]), rows["need"], rows["audio_bytes"], strict=True
                )
                measured = pool.map(lambda some: list(map(self.measure, some)), chunks_of(columns, MEASURED_TOGETHER))
                self.add(list(chain.from_iterable(measured)))
        return Preview(
            output_dir=root,
            lines_read=counts.lines_read,
            rejected=rejected,
            capped=counts.capped,
            reused=counts.reused,
            pending=counts.pending,
            unreadable=self.unreadable,
            hours=sum(self.shard_seconds) / 3600,
            batches=self.num_batches,
            padding=1 - self.frames / self.padded if self.padded else 0.0,
            num_bytes=self.num_bytes,
            disk_bytes=self.disk_bytes,
            shares=self.shares(),
        )

    def measure(self, row: tuple[float | None, str, list[str], int]) -> _Sample:
        """A pending sample's cost, by the duration in its row, or else its file's header (in object storage, size)."""
        duration, path, names, num_bytes = row
        need, readable = frozenset(names), True
        if duration is None and need & self.inputs.schema.audio_groups:
            duration = expected_seconds(path, num_bytes)
            readable = duration is not None
        seconds = duration or 0.0
        return _Sample(seconds, frames_in(self.inputs.models, seconds), need, readable)

    def add(self, samples: Sequence[_Sample]) -> None:
        """Add one work unit."""
        with_audio = [item for item in samples if item.need & self.inputs.schema.audio_groups and item.readable]
        with_audio.sort(key=lambda sample: -sample.seconds)
        for batch in batches(with_audio, self.limits, FrameBudget(self.limits.max_frames), packed=self.packed):
            self.num_batches += 1
            self.frames += sum(sample.num_frames for sample in batch)
            self.padded += padded_frames(batch, packed=self.packed)
        self.unreadable += sum(not sample.readable for sample in samples)
        self.shard_seconds.append(sum(sample.seconds for sample in with_audio))
        self.shard_samples.append(len(samples))
        for sample in samples:
            if sample.readable:
                sizes = self.sizes(sample)
                self.num_bytes += sum(sizes)
                self.disk_bytes += sum(-(-size // BLOCK_BYTES) * BLOCK_BYTES for size in sizes)

    def sizes(self, sample: _Sample) -> list[int]:
        """Sizes in bytes of the artifacts that a sample needs, by their expected lengths."""
        models, schema = self.inputs.models, self.inputs.schema
        num_codes = models.num_codes(sample.num_frames)
        expected = {name: self.text_len for column in schema.of_kind("tokens") for name in column.lengths}
        expected |= {name: num_codes for column in schema.of_kind("codes") for name in column.lengths}
        expected |= schema.fixed
        return [npy_size(column.dtype, schema.shape(column, expected)) for column in schema.columns_of(sample.need)]

    def mean_text_len(self) -> int:
        """Mean token count of some texts, evenly spread over the plan; 0 without a tokenizer."""
        encoder = self.inputs.text_encoder
        if encoder is None:
            return 0
        count = self.plan.table.num_rows
        chosen = range(0, count, max(1, count // TEXTS_TRIED))[:TEXTS_TRIED]
        rows = self.plan.take(chosen, ["text", "language"]).to_pydict()
        lengths = []
        for text, language in zip(rows["text"], rows["language"], strict=True):
            try:
                lengths.append(len(encoder.encode(text, language)))
            except RejectedSample:
                continue
        return round(sum(lengths) / len(lengths)) if lengths else 0

    def shares(self) -> list[Share]:
        """Assign work units to processes: each to the one that is free first."""
        count = self.num_processes
        free = [(0.0, process) for process in range(count)]
        shards, samples, seconds = [0] * count, [0] * count, [0.0] * count
        for cost, size in zip(self.shard_seconds, self.shard_samples, strict=True):
            busy, process = heapq.heappop(free)
            heapq.heappush(free, (busy + max(cost, 1e-9), process))
            shards[process] += 1
            samples[process] += size
            seconds[process] += cost
        device = self.config.device
        devices = [str(choose_device(worker_device(device, process))) for process in range(count)]
        return [Share(i, devices[i], shards[i], samples[i], seconds[i] / 3600) for i in range(count)]
