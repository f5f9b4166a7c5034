"""One build, from a manifest to finished features.

`build(BuildConfig(...))` is the Python call behind `python -m hfprep build`. Takes a config, returns a `Summary`.
"""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hfprep.errors import ConfigError, StopRequested
from hfprep.formats.build_formats import export_formats, forget_exports, keep_extra_fields
from hfprep.formats.feature_stores import open_store
from hfprep.formats.pair_files import renew_pairs
from hfprep.formats.remote_shards import open_remote
from hfprep.formats.samples import Origin
from hfprep.inputs.text.scripts import LANGUAGE_NAMES
from hfprep.io.atomic import write_lines
from hfprep.io.lock import OutputLock
from hfprep.io.object_storage import url_of
from hfprep.pipeline.adopting import adopt_workers, check_chain
from hfprep.pipeline.codebook import CodebookUse, listed_ids
from hfprep.pipeline.collector import imports_frozen
from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.devices import choose_workers
from hfprep.pipeline.engines.choice import ENGINES, Job, Shared
from hfprep.pipeline.engines.spec import BatchCost
from hfprep.pipeline.filters import SampleOptions
from hfprep.pipeline.inputs import Inputs, find_inputs
from hfprep.pipeline.logs import log_shown, log_to_file
from hfprep.pipeline.parts import part_facts, withdraw_part, write_part
from hfprep.pipeline.plan import Plan, PlanCounts, PlanOptions, no_doubt
from hfprep.pipeline.planning import Planner
from hfprep.pipeline.precision_choice import decide, measured
from hfprep.pipeline.progress import BuildProgress
from hfprep.pipeline.provenance import check_recipe, earlier_settings, given_paths, options_in_force
from hfprep.pipeline.signals import StopSignals, stop_on_signals
from hfprep.pipeline.summary import Summary
from hfprep.pipeline.underway import pending_work, work_of
from hfprep.pipeline.validation import with_split
from hfprep.recipes.base import frames_in, via_rate
from hfprep.schema import Column, Rejection
from hfprep.store.fingerprints import Fingerprinter, differences
from hfprep.store.layout import REJECTED, STATS, NpyOutput, json_line
from hfprep.store.listing import Listed, Listing, entry_of
from hfprep.store.remote import Mirror, open_folder
from hfprep.store.state import State
from hfprep.store.statistics import package_versions, read_stats, write_stats
from hfprep.store.timeline import Timeline
from hfprep.store.values import parse_paths

log = logging.getLogger(__name__)

SECONDS_PER_HOUR = 3600.0
NAMED_FILES = ("tokenizer", "gpt_checkpoint")  # files whose paths are in stats.json


def build(
    config: BuildConfig, *, shared: Shared | None = None, progress: bool = True, with_audio: bool = True
) -> Summary:
    """Compute every missing feature of a manifest into `config.output_dir`, or continue there.

    Raises ConfigError, CheckpointError or StoreError before any audio is read if the options, the models or the output
    directory are wrong; bad samples raise nothing and are listed in rejected.jsonl. Builds with the same models can
    share them (`shared`). With `progress` a bar is shown in a terminal or a notebook, elsewhere a line from time to
    time, and log lines if the program has not configured logging. Without `with_audio` only text is computed, and
    samples whose audio features are not finished are rejected.
    """
    with log_shown(shown=progress), BuildProgress(shown=progress) as shown:
        return _build(config, shared, shown, with_audio)


def _build(config: BuildConfig, shared: Shared | None, shown: BuildProgress, with_audio: bool) -> Summary:
    started = time.monotonic()
    folder = open_folder(config.output_dir, config.work_dir)
    engine = ENGINES[config.engine]
    with ExitStack() as stack:
        shared = shared or stack.enter_context(Shared())
        engine.prepare(config, shared)
        stack.enter_context(OutputLock(folder.private / "lock"))
        stack.enter_context(log_to_file(folder.private / "build.log", as_json=config.log_json))
        stop = stack.enter_context(stop_on_signals())
        folder.reset_work()
        stack.callback(folder.remove_work)
        shown.stage("checking the model files")
        inputs = shared.inputs = shared.inputs or find_inputs(config, folder)
        stack.enter_context(imports_frozen())  # after the imports of the recipe
        output = NpyOutput(folder.root, inputs.schema)
        mirror = stack.enter_context(Mirror(folder)) if folder.url is not None else None
        state = State(output.state_file, inputs.schema, output.work / "scan.sqlite")
        stack.callback(state.close)
        check_recipe(state, inputs.schema)
        shown.stage("preparing")
        config = decide(with_split(config), inputs, state, lambda trial: engine.trial(trial, shared))
        run = _Run(config, output, state, inputs, shared, started, mirror, shown, with_audio)
        stack.callback(run.kept.close)
        try:
            plan = run.plan(stop)
        except StopRequested:
            log.warning("stopped while reading the manifest; nothing has changed")
            return run.summary(stop.signal)
        state.put("paths", given_paths(config, run.working_folder))
        if run.counts.pending:
            forget_exports(state)
        run.compute(plan, stop)
        shown.stage("listing the samples")
        summary = run.finish(plan, stop)
        if not summary.pending:
            shown.stage("exporting")
            run.export()
            warn_of_empty_split(summary, config.val_ratio)
            for line in [] if mirror is not None else renew_pairs(output.root):
                log.warning("pairs: %s", line)
            if config.part is not None:
                write_part(output, plan.path, part_facts(config, inputs))
        run.kept.end()
        return summary


def plan_options(
    config: BuildConfig, inputs: Inputs, differences: Sequence[str] = (), *, with_audio: bool = True
) -> PlanOptions:
    """The options of a config that decide which rows are used and what is reused."""
    return PlanOptions(
        settings_changes=tuple(differences),
        language=config.language,
        max_samples=config.max_samples,
        part=config.part,
        fields=config.field_map,
        audio_root=config.audio_root,
        samples=SampleOptions.of(config, via_rate(config.resample_via, inputs.models.audio)),
        skip_existing=config.skip_existing,
        with_audio=with_audio,
        hash_audio=config.hash_audio,
        refuse_changes=config.on_change == "refuse",
        workers=choose_workers(config.workers),
        num_codes=lambda seconds: inputs.models.num_codes(frames_in(inputs.models, seconds)),
        doubt=no_doubt if inputs.text_encoder is None else inputs.text_encoder.doubt,
    )


def warn_of_doubtful(counts: PlanCounts) -> None:
    """Warn about texts whose grammar is chosen by their script."""
    if not counts.doubtful:
        return
    kinds = (
        f"{LANGUAGE_NAMES[item.language]} for {item.script}: {count}" for item, count in counts.doubtful.most_common()
    )
    log.warning(
        "%d of %d rows have no language, so their grammar is chosen by script (%s; the first is line %d). This is what "
        "the published front end does, but rarely intended: set the language, in the manifest or with --language",
        counts.doubtful.total(), counts.rows, ", ".join(kinds), counts.doubtful_line,
    )  # fmt: skip


def warn_of_empty_split(summary: Summary, val_ratio: float) -> None:
    """Warn if a split has no sample; trainers fail on an empty file."""
    if summary.accepted and not summary.val and val_ratio:
        log.warning(
            "the validation split is empty: too few samples (%d) for --val-ratio %g; use --val-count N",
            summary.accepted, val_ratio,
        )  # fmt: skip
    if summary.accepted and not summary.train:
        log.warning("the train split is empty: all %d samples are in validation (--val-ratio %g)",
                    summary.accepted, val_ratio)  # fmt: skip


@dataclass
class _Run:
    """The steps of one build, called by `build`."""

    config: BuildConfig
    output: NpyOutput
    state: State
    inputs: Inputs
    shared: Shared
    started: float
    mirror: Mirror | None
    progress: BuildProgress
    with_audio: bool
    settled: bool = False
    out_of_memory_events: int = 0
    counts: PlanCounts = field(default_factory=PlanCounts)
    listed: Listed = field(default_factory=Listed)

    def __post_init__(self) -> None:
        places = (self.output, self.state, self.config.formats, self.config.max_shard_bytes)
        self.kept = open_store(*places) if self.mirror is None else open_remote(*places, self.mirror)
        self.codebook = CodebookUse(self.state, self.inputs.schema)
        self.fingerprinter = Fingerprinter(self.inputs.schema, self.inputs.settings(self.config))
        self.settings = self.fingerprinter.settings

    def plan(self, stop: StopSignals) -> Plan:
        """Compare the manifest with what is finished, and list exactly that."""
        config, settings = self.config, self.settings
        earlier = earlier_settings(self.state)
        changed = differences(settings, earlier)
        for line in changed:
            log.warning("changed since finished samples were computed: %s", line)
        if self.output.occupied() and self.state.is_empty():
            if config.skip_existing:
                check_chain(config, self.output.root)
                adopt_workers(self.output)
            else:
                log.warning(
                    "%s contains artifacts of unknown origin; they are computed again (--skip-existing adopts them)",
                    self.output.root,
                )
        options = plan_options(config, self.inputs, changed, with_audio=self.with_audio)
        options = dataclasses.replace(options, working_folder=self.working_folder)
        with self.listing() as listing:
            planner = Planner(self.output, self.state, self.fingerprinter, options, listing,
                              artifacts=self.kept.manifests)  # fmt: skip
            counts = self.counts = planner.counts
            self.progress.stage(lambda: f"reading the manifest: {counts.lines_read:,} lines")
            plan = planner.plan(config.manifest, stop=lambda: stop.signal is not None)
            if not counts.lines_read and config.part is None:
                raise ConfigError(f"--manifest {str(config.manifest)!r} is empty; give one JSON object per line")
            withdraw_part(self.output)  # the output changes from here on
            log.info("%s", counts.line())
            warn_of_doubtful(counts)
            if settings not in earlier:
                self.state.put("settings_begun", [*earlier[1:], settings] if earlier else [])
            if not earlier:
                self.state.put("settings", settings)
        if self.kept.manifests:
            keep_extra_fields(self.output.root, plan.table)
        self.list_rejected()
        return plan

    @functools.cached_property
    def working_folder(self) -> str | None:
        """That of the last build, if this one reads no audio: relative paths are still those of the same files."""
        paths = None if self.with_audio else self.state.get("paths", parse_paths)
        return (paths or {}).get("folder")

    def listing(self, repeated: Listed | None = None) -> Listing:
        """A new listing of manifests and progress file; its counts become this run's."""
        ratio, manifests = self.config.val_ratio, self.kept.manifests
        listing = Listing(self.output, self.state, ratio, manifests=manifests, repeated=repeated)
        self.listed = listing.listed
        return listing

    def list_finished(self, plan: Plan) -> None:
        """Rewrite manifests and progress file to list exactly what is finished: what was, and what is now."""
        with self.listing(self.listed) as listing:
            for ids, pending in plan.pending_chunks():
                known, place = self.state.samples(ids[position] for position in pending), 0
                for (position, row), sample in zip(pending.items(), known, strict=True):
                    listing.keep(ids[place:position])
                    place = position + 1
                    if sample is not None and not sample.missing(row.fingerprints):
                        entry = entry_of(self.output.schema, row.utterance, sample, record=self.kept.manifests)
                        listing.add(entry)
                listing.keep(ids[place:])

    def list_rejected(self) -> None:
        """Rewrite rejected.jsonl to list exactly this run's rejections, by line."""
        write_lines(self.output.root / REJECTED, (json_line(item.record()) for item in self.state.rejections()))

    def compute(self, plan: Plan, stop: StopSignals) -> None:
        """Compute what is pending, publishing each batch as it completes."""
        pending = plan.counts.pending
        self.kept.begin(plan, self.config.val_ratio)
        if not pending or stop.signal is not None:
            return
        progress, audio_groups = self.progress, self.inputs.schema.audio_groups
        progress.begin(pending, pending_work(plan, audio_groups))
        with (
            contextlib.closing(self.kept.publisher()) as publisher,
            Timeline(self.output.private) as timeline,
        ):
            self.codebook.begin(reused=plan.counts.reused, changed=bool(plan.counts.known))

            def sink(staged: list[Any], rejections: list[Rejection], cost: BatchCost) -> None:
                placed = publisher.publish(staged, rejections)
                refused = len(rejections) + len(staged) - len(placed)
                self.codebook.add(len(placed), cost.codes)
                self.out_of_memory_events += cost.out_of_memory_events
                timeline.add(rejected=refused, **cost.record())
                progress.advance(
                    done=len(placed),
                    rejected=refused,
                    audio_seconds=cost.audio_seconds,
                    num_frames=cost.num_frames,
                    padded_frames=cost.padded_frames,
                    work=sum(work_of(item.row, audio_groups) for item in placed),
                )

            try:
                job = Job(
                    config=self.config,
                    inputs=self.inputs,
                    plan=plan,
                    staging=self.kept.staging,
                    sink=sink,
                    watch=progress.underway,
                    work=self.output.work,
                    stop=lambda: stop.signal is not None,
                )
                ENGINES[self.config.engine].run(job, self.shared)
            except StopRequested:
                log.warning("stopped; everything computed is on disk")
            finally:
                progress.end()

    def finish(self, plan: Plan, stop: StopSignals) -> Summary:
        """Replace the running lists with the final ones and write stats.json."""
        if self.progress.finished:
            self.list_finished(plan)
            self.list_rejected()
        summary = self.summary(stop.signal)
        if not summary.pending:
            self.settled = self.kept.finish(plan, lambda: stop.signal is not None)
            self.state.put("settings", self.settings)
            self.state.put("settings_begun", [])
        write_stats(self.output.root / STATS, self.stats(summary))
        return summary

    def export(self) -> None:
        """Update every requested format to what is finished."""
        root, formats, size = self.output.root, self.config.formats, self.config.max_shard_bytes
        if self.settled:
            shown = self.kept.publish(Origin(read_stats(root), self.settings))
            export_formats(root, self.state, set(formats) - {self.kept.name}, size, shown)

    def summary(self, interrupted_by: int | None) -> Summary:
        """The state of this run."""
        counts, listed = self.counts, self.listed
        rejected = self.state.rejection_counts()
        accepted = listed.train + listed.val
        return Summary(
            output_dir=self.output.root,
            lines_read=counts.lines_read,
            accepted=accepted,
            rejected=rejected,
            capped=counts.capped,
            pending=counts.lines_read - accepted - sum(rejected.values()) - counts.capped,
            train=listed.train,
            val=listed.val,
            hours=listed.seconds / SECONDS_PER_HOUR,
            reused=counts.reused,
            adopted=counts.adopted,
            repaired=counts.repaired,
            changed=counts.changed,
            out_of_memory_events=self.out_of_memory_events,
            overlong=listed.overlong_by_group(self.inputs.schema),
            elapsed_seconds=time.monotonic() - self.started,
            tally=self.progress.tally,
            interrupted_by=interrupted_by,
            url=url_of(self.config.output_dir),
        )

    def stats(self, summary: Summary) -> dict[str, Any]:
        """The content of stats.json."""
        config, inputs = self.config, self.inputs
        return {
            "total": summary.accepted,
            "train": summary.train,
            "val": summary.val,
            "recipe": inputs.schema.recipe,
            "schema": inputs.schema.record(),
            **{name: str(inputs.models.files[name]) for name in NAMED_FILES if name in inputs.models.files},
            "sha256": inputs.sha256,
            "versions": package_versions(),
            "precision": config.precision,
            "code_agreement": measured(self.state, config.precision),
            "hours": round(summary.hours, 6),
            "lines_read": summary.lines_read,
            "accepted": summary.accepted,
            "rejected": summary.rejected,
            "capped": summary.capped,
            "pending": summary.pending,
            "codebook": self.codebook.summary(listed_ids(self.output), summary.accepted, self.read_codes),
            "overlong": summary.overlong,
            "out_of_memory_events": summary.out_of_memory_events,
            "settings": options_in_force(config),
        }

    def read_codes(self, column: Column, ids: Sequence[str]) -> np.ndarray:
        """The concatenated codes of some samples."""
        return np.concatenate([codes.reshape(-1) for codes in self.kept.read(column.name, ids)])
