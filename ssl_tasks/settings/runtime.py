"""Settings of the machine: they change the place and speed of a run, and no result."""

from typing import Literal

from pydantic import Field

from selftrain.ssl_tasks.settings.section import Section


class RuntimeSettings(Section):
    """Where and how fast; nothing here changes what is computed, so nothing here takes part in a stage's key."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1")
    processes: int = Field(
        1,
        ge=1,
        description="data-parallel training processes on this host. They share each batch; batch norm sees it whole on "
        "CUDA, on CPUs each process's own part (running statistics are averaged)",
    )
    nodes: int = Field(
        1, ge=1, description="hosts that train together, each with `processes`; on the others runs `selftrain assist`"
    )
    rendezvous: str | None = Field(
        None,
        description="HOST:PORT where the hosts meet: this one, as the others reach it; default its name, a free port",
    )
    workers: int = Field(0, ge=0, description="processes that prepare batches")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; default all cores")
    cache: Literal["auto", "off"] = Field("auto", description="decoded images in a shared file where they fit")
    cache_gb: float = Field(8.0, ge=0)
    checkpoint_every: float = Field(60.0, gt=0, description="seconds")
    parallel: int = Field(1, ge=1, description="independent stages at the same time")
    memory_gb: float = Field(2.0, gt=0, description="of DuckDB")
    stage_timeout: float | None = Field(None, gt=0, description="seconds, from when the stage has its GPU")
    retries: int = Field(2, ge=0, description="of faults that trying again can cure")
    store: str | None = Field(
        None, description="object storage that machines share, as s3://bucket/folder; default SELFTRAIN_STORE"
    )
    task_runner: Literal["local", "ray"] = Field(
        "local", description="ray: prediction shards, and the cells of a comparison, as tasks of a Ray cluster"
    )
    ray_address: str | None = Field(
        None, description="HOST:6379; default RAY_ADDRESS, else the cluster of this machine"
    )
    gpus_per_task: float = Field(0.0, ge=0, description="of a Ray task, which gets `threads` CPUs (default 1) beside")
    restarts: int = Field(3, ge=0, description="of a crashed run, in a row, where a server starts crashed runs again")
