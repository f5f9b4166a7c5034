"""The engine that a config asks for: this process, processes of this machine, or a Ray cluster.

Gives `run_engine`. Takes a config, the models that were found for it, and a plan; each finished batch goes to the sink.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.devices import choose_workers
from hfprep.pipeline.engines.local import run_local
from hfprep.pipeline.engines.processes import choose_num_processes, run_processes, threads_per_process
from hfprep.pipeline.engines.spec import ExtractorSpec, Models, Sink, Staging
from hfprep.pipeline.inputs import Inputs
from hfprep.pipeline.intake import via_rate
from hfprep.pipeline.planning import Plan


def run_engine(
    config: BuildConfig,
    inputs: Inputs,
    plan: Plan,
    staging: Staging,
    sink: Sink,
    *,
    work: Path,
    models: Models,
    stop: Callable[[], bool],
) -> None:
    """Compute the pending rows of a plan; raises StopRequested once `stop()` is true, and what engine and sink raise.

    `models` are those of this process, which may be loaded already; `work` is a folder for working data.
    """
    num_processes = choose_num_processes(config.num_processes, config.device)
    spec = ExtractorSpec(
        model_set=inputs.models,
        staging=staging,
        seen=inputs.seen,
        with_audio=bool(plan.counts.need & inputs.schema.audio_groups),
        device=config.device,
        precision=config.precision,
        batch_size=config.batch_size,
        workers=max(1, choose_workers(config.workers) // num_processes),
        via_sampling_rate=via_rate(config.audio_sr, inputs.models.audio),
        drop_overlong=config.drop_overlong,
        filters=config.filters,
        threads=threads_per_process(num_processes) if num_processes > 1 else None,
    )
    if config.engine == "ray":
        _run_on_ray(config, spec, plan, sink, work, stop)
    elif num_processes == 1:
        run_local(spec, plan.pending(), sink, work=work, stop=stop, models=models)
    else:
        run_processes(spec, plan, sink, work=work, num_processes=num_processes, stop=stop)


def _run_on_ray(
    config: BuildConfig, spec: ExtractorSpec, plan: Plan, sink: Sink, work: Path, stop: Callable[[], bool]
) -> None:
    """Give the rows to a Ray cluster; each worker has --workers CPUs (one if left open)."""
    from hfprep.pipeline.engines.ray import RayOptions, run_ray

    cpus = config.workers or 1
    spec = dataclasses.replace(spec, workers=cpus, threads=cpus)
    options = RayOptions(
        address=config.ray_address,
        num_workers=config.num_processes,
        num_gpus_per_worker=config.num_gpus_per_worker,
        num_cpus_per_worker=cpus,
    )
    run_ray(spec, plan, sink, work=work / "ray", options=options, stop=stop)
