"""One build, from a manifest to finished features: the recipe that everything else serves.

`build(BuildConfig(...))` is the Python call behind `python -m hfprep build`. Takes a config, gives a `Summary`.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from hfprep.audio.decode import TARGET_SAMPLING_RATE
from hfprep.audio.input_features import check_preprocessor
from hfprep.config import BuildConfig
from hfprep.devices import choose_workers
from hfprep.engines.local import run_local
from hfprep.engines.processes import choose_num_processes, run_processes, threads_per_process
from hfprep.engines.spec import BatchCost, ExtractorSpec, Sink, StopRequested
from hfprep.errors import ConfigError
from hfprep.logs import log_to_file
from hfprep.model_config import ModelConfig
from hfprep.models.locate import ModelFiles, locate
from hfprep.planning import Plan, Planner, PlanOptions
from hfprep.progress import BuildProgress, Tally
from hfprep.records import Need, Rejection
from hfprep.signals import StopSignals, stop_on_signals
from hfprep.store.atomic import write_lines
from hfprep.store.fingerprints import FileHashes, Fingerprinter, Settings, digest
from hfprep.store.layout import REJECTED, STATS, Listed, NpyOutput, Publisher, Staged, json_line, write_listing
from hfprep.store.lock import OutputLock
from hfprep.store.state import State
from hfprep.store.statistics import codebook_use, package_versions, write_stats
from hfprep.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

PRECISION = "fp32"
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Summary:
    """What a build did. lines_read = accepted + all rejected + capped + pending (0 unless it was interrupted)."""

    output_dir: Path
    lines_read: int
    accepted: int
    rejected: dict[str, int]
    capped: int
    pending: int
    train: int
    val: int
    hours: float
    reused: int
    adopted: int
    mended: int
    changed: int
    out_of_memory_events: int
    overlong: dict[str, int]
    elapsed_seconds: float
    tally: Tally = field(default_factory=Tally)
    interrupted_by: int | None = None


@dataclass(frozen=True)
class Inputs:
    """The models of a build, found and identified, not yet loaded."""

    files: ModelFiles
    model_config: ModelConfig
    tokenizer: TextTokenizer
    sha256: dict[str, str]

    def settings(self, config: BuildConfig) -> Settings:
        """What the numbers depend on besides rows and audio."""
        sha256, model = self.sha256, self.model_config
        semantic = {name: value for name, value in sha256.items() if name.startswith(("semantic_model", "w2v_stat"))}
        semantic |= {"audio_sr": str(config.audio_sr), "precision": PRECISION}
        architecture = (
            digest(dataclasses.asdict(model.condition)).hex() + digest(dataclasses.asdict(model.emotion)).hex()
        )
        return Settings(
            text={"tokenizer": sha256["tokenizer"], "normalizer": self.tokenizer.fingerprint()},
            codes=semantic | {"semantic_codec": sha256["semantic_codec"]},
            latents=semantic | {"gpt_checkpoint": sha256["gpt_checkpoint"], "conditioners": architecture},
        )


def build(config: BuildConfig) -> Summary:
    """Compute every missing feature of a manifest into `config.output_dir`, or continue there.

    Raises ConfigError, CheckpointError or StoreError before any audio is read where the options, the models or the
    output directory are wrong; bad samples raise nothing, they are in rejected.jsonl.
    """
    started = time.monotonic()
    datasets.disable_progress_bars()
    output = NpyOutput(config.output_dir)
    with ExitStack() as stack:
        stack.enter_context(OutputLock(output.private / "lock"))
        stack.enter_context(log_to_file(output.private / "build.log", as_json=config.log_json))
        stop = stack.enter_context(stop_on_signals())
        output.reset_work()
        stack.callback(output.remove_work)
        inputs = find_inputs(config, output)
        state = State(output.private / "state.sqlite")
        stack.callback(state.close)
        run = _Run(config, output, state, inputs, started)
        plan = run.plan()
        run.compute(plan, stop)
        return run.finish(plan, stop.signal)


def _named_files(files: ModelFiles, tokenizer: Path) -> dict[str, Path]:
    """Every file whose content the numbers depend on, under the name that stats.json gives it."""
    return {
        "tokenizer": tokenizer,
        "config": files.config,
        "gpt_checkpoint": files.gpt_checkpoint,
        "w2v_stat": files.w2v_stat,
        "semantic_codec": files.semantic_codec,
        "semantic_model/config.json": files.semantic_config,
    } | {f"semantic_model/{path.name}": path for path in files.semantic_weights}


def find_inputs(config: BuildConfig, output: NpyOutput) -> Inputs:
    """Find and check everything but the weights themselves."""
    files = locate(
        models=config.models,
        config=config.config,
        gpt_checkpoint=config.gpt_checkpoint,
        semantic_model=config.semantic_model,
        semantic_codec=config.semantic_codec,
    )
    model_config = ModelConfig.read(files.config)
    check_preprocessor(files.preprocessor_config)
    tokenizer_path = config.tokenizer_path
    tokenizer = TextTokenizer(tokenizer_path)
    if tokenizer.vocab_size > model_config.number_text_tokens:
        raise ConfigError(
            f"--tokenizer {str(tokenizer_path)!r} has {tokenizer.vocab_size} tokens, but the checkpoint has only "
            f"{model_config.number_text_tokens} (gpt.number_text_tokens in {model_config.path}); use the tokenizer it "
            "was trained with, or extend the checkpoint first"
        )
    hashes = FileHashes(output.private / "sha256.json")
    return Inputs(files, model_config, tokenizer, hashes.sha256(_named_files(files, tokenizer_path)))


class _Run:
    """The steps of one build, in the order in which `build` takes them."""

    def __init__(self, config: BuildConfig, output: NpyOutput, state: State, inputs: Inputs, started: float) -> None:
        self.config = config
        self.output = output
        self.state = state
        self.inputs = inputs
        self.started = started
        self.workers = choose_workers(config.workers)
        self.via = None if config.audio_sr == TARGET_SAMPLING_RATE else config.audio_sr
        self.tally = Tally()
        self.out_of_memory_events = 0

    def plan(self) -> Plan:
        """Hold the manifest against what is finished, and list exactly that."""
        config, settings = self.config, self.inputs.settings(self.config)
        differences = settings.differences(self.state.get("settings") or settings.groups())
        for line in differences:
            log.warning("changed since the last run: %s", line)
        if self.output.occupied() and not self.state.num_samples() and not config.skip_existing:
            log.warning("%s holds artifacts of unknown origin; they are computed again (--skip-existing adopts them)",
                        self.output.root)  # fmt: skip
        options = PlanOptions(
            settings_changes=tuple(differences),
            language=config.language,
            max_samples=config.max_samples,
            skip_existing=config.skip_existing,
            hash_audio=config.hash_audio,
            refuse_changes=config.on_change == "refuse",
            workers=self.workers,
        )
        planner = Planner(self.output, self.state, Fingerprinter(settings), options)
        plan = planner.plan(config.manifest)
        counts = plan.counts
        if not counts.lines_read:
            raise ConfigError(f"--manifest {str(config.manifest)!r} is empty; give one JSON object a line")
        log.info("%d lines: %d to compute, %d finished already, %d rejected so far, %d capped",
                 counts.lines_read, counts.pending, counts.reused, counts.rejected, counts.capped)  # fmt: skip
        self.list_finished(plan)
        self.list_rejected()
        if not counts.changed:
            self.state.put("settings", settings.groups())
        return plan

    def list_finished(self, plan: Plan) -> Listed:
        """Make manifests and progress file list exactly what is finished."""
        config = self.config
        listed = write_listing(
            self.output,
            self.state,
            plan.rows(),
            val_ratio=config.val_ratio,
            earlier_ratio=self.state.get("val_ratio"),
            max_text_tokens=self.inputs.model_config.max_text_tokens,
            max_codes=self.inputs.model_config.max_mel_tokens,
        )
        self.state.put("val_ratio", config.val_ratio)
        return listed

    def list_rejected(self) -> None:
        """Make rejected.jsonl list exactly this run's rejections, by line."""
        write_lines(self.output.root / REJECTED, (json_line(item.record()) for item in self.state.rejections()))

    def compute(self, plan: Plan, stop: StopSignals) -> None:
        """Compute what is pending, publishing each batch as it completes."""
        pending = plan.pending()
        if not len(pending):
            return
        with (
            contextlib.closing(Publisher(self.output, self.state, self.config.val_ratio)) as publisher,
            BuildProgress(len(pending)) as progress,
        ):
            self.tally = progress.tally

            def sink(staged: list[Staged], rejections: list[Rejection], cost: BatchCost) -> None:
                publisher.publish(staged, rejections)
                self.out_of_memory_events += cost.out_of_memory_events
                progress.advance(
                    done=len(staged),
                    rejected=len(rejections),
                    audio_seconds=cost.audio_seconds,
                    num_frames=cost.num_frames,
                    padded_frames=cost.padded_frames,
                )

            try:
                self.run_engine(plan, pending, sink, lambda: stop.signal is not None)
            except StopRequested:
                log.warning("stopped as asked; everything computed is on disk")

    def run_engine(self, plan: Plan, pending: datasets.Dataset, sink: Sink, stop: Callable[[], bool]) -> None:
        """Give the pending rows to the engine that was asked for."""
        config, inputs, work = self.config, self.inputs, self.output.work
        num_processes = choose_num_processes(config.num_processes)
        spec = ExtractorSpec(
            files=inputs.files,
            model_config=inputs.model_config,
            tokenizer=config.tokenizer_path,
            with_audio=any(need & Need.AUDIO for need in pending.unique("need")),
            device=config.device,
            batch_size=config.batch_size,
            workers=max(1, self.workers // num_processes),
            via_sampling_rate=self.via,
            drop_overlong=config.drop_overlong,
            threads=threads_per_process(num_processes) if num_processes > 1 else None,
        )
        if num_processes == 1:
            run_local(spec, pending, sink, work=work, stop=stop)
        else:
            run_processes(spec, plan, sink, work=work, num_processes=num_processes, stop=stop)

    def finish(self, plan: Plan, interrupted_by: int | None) -> Summary:
        """Replace the running files by final ones and sum up."""
        config, counts = self.config, plan.counts
        listed = self.list_finished(plan)
        self.list_rejected()
        rejected = self.state.rejection_counts()
        accepted = listed.train + listed.val
        summary = Summary(
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
            mended=counts.mended,
            changed=counts.changed,
            out_of_memory_events=self.out_of_memory_events,
            overlong={"text": listed.overlong_text, "codes": listed.overlong_codes},
            elapsed_seconds=time.monotonic() - self.started,
            tally=self.tally,
            interrupted_by=interrupted_by,
        )
        if interrupted_by is None:
            self.state.put("settings", self.inputs.settings(config).groups())
        write_stats(self.output.root / STATS, self.stats(plan, summary))
        return summary

    def stats(self, plan: Plan, summary: Summary) -> dict[str, Any]:
        """The content of stats.json."""
        config, inputs = self.config, self.inputs
        listed = (row.utterance.id for row in plan.rows() if not self.is_missing(row.utterance.id))
        paths = (self.output.artifact("codes", sample_id) for sample_id in listed)
        names = ("audio_sr", "batch_size", "drop_overlong", "hash_audio", "language", "max_samples", "val_ratio")
        return {
            "total": summary.accepted,
            "train": summary.train,
            "val": summary.val,
            "tokenizer": str(config.tokenizer_path),
            "gpt_checkpoint": str(config.gpt_checkpoint or inputs.files.gpt_checkpoint),
            "sha256": inputs.sha256,
            "versions": package_versions(),
            "precision": PRECISION,
            "hours": round(summary.hours, 6),
            "lines_read": summary.lines_read,
            "accepted": summary.accepted,
            "rejected": summary.rejected,
            "capped": summary.capped,
            "pending": summary.pending,
            "codebook": codebook_use(paths, inputs.model_config.semantic_codec.codebook_size),
            "overlong": summary.overlong,
            "out_of_memory_events": summary.out_of_memory_events,
            "settings": {name: getattr(config, name) for name in names},
        }

    def is_missing(self, sample_id: str) -> bool:
        """Whether a sample is not complete on disk."""
        state = self.state.sample(sample_id)
        return state is None or state.finished() != Need.ALL
