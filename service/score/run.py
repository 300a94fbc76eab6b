"""Runs offline scoring, from the options to the summary: ``score``."""

import hashlib
import math
import platform
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec
import pyarrow as pa
from tqdm import tqdm

from export.bundle.manifest import BundleError, Manifest
from export.bundle.session import DeviceUnavailableError, choose_device
from export.bundle.store import MANIFEST_NAME, Bundle
from service.engine.engines import count_cores
from service.protocol.tensors import sample_bytes
from service.score.columns import InputColumns, takes_pictures
from service.score.errors import ScoreError
from service.score.output import SUMMARY, OutputFolder, PartRecord, RunManifest
from service.score.parts import ImagesPart, Part, plan_parts
from service.score.pool import connect, score_parts
from service.score.scorer import Job, peak_rss_bytes
from service.score.source import Format, Source, find_source
from service.settings import Settings, SettingsError, read_settings

# By default a part holds this many bytes of input values, within these bounds. Models with large
# samples are usually slow, and with small parts a killed run loses little of their work.
PART_BYTES, LARGEST_PART_ROWS, SMALLEST_PART_BATCHES = 32 * 2**20, 65_536, 8
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "pyarrow", "ray")


@dataclass(frozen=True)
class Work:
    """What the actors did in this run.

    Attributes:
        records: The records of the parts that they finished.
        actors: The number of actors.
        seconds: Time from the start of the first part to the end of the last one.
    """

    records: list[PartRecord]
    actors: int
    seconds: float

    @property
    def rows(self) -> int:
        """The number of rows, with or without an answer."""
        return sum(record.rows + record.quarantined for record in self.records)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a run.

    Attributes:
        input: A path or URL.
        output: A path or URL of a folder.
        bundle: The bundle's folder.
        format: The format of the input; None: detect it.
        inputs: The columns of those inputs whose names differ from their columns'.
        key: The column that identifies a row; None: file and row number identify it.
        batch_size: The number of rows in one batch of the model.
        part_rows: The number of rows in a part; None: the default.
        actors: The number of processes; None: one for each core, or for each GPU.
        device: Overrides the service's setting of this name; None: use the setting.
        variant: Overrides the service's setting of this name; None: use the setting.
        threads: Overrides the service's setting of this name; None: use the setting.
        ray_address: The address of a Ray cluster; None: use only this machine.
        restart: Remove what an earlier run wrote to the output, and begin again.
        show_progress: Draw a progress bar on stderr, if that is a terminal.
    """

    input: str
    output: str
    bundle: Path
    format: Format | None = None
    inputs: InputColumns
    key: str | None = None
    batch_size: int = 64
    part_rows: int | None = None
    actors: int | None = None
    device: Literal["auto", "cpu", "cuda"] | None = None
    variant: str | None = None
    threads: int | None = None
    ray_address: str | None = None
    restart: bool = False
    show_progress: bool = True


class Summary(msgspec.Struct, frozen=True):
    """The summary of a run, written as JSON.

    Attributes:
        rows: Rows with an answer, including those of earlier runs.
        quarantined_rows: Rows without an answer, as far as they could be counted.
        unreadable_files: Files whose rows could not be counted.
        skipped_files: Files next to the input's that have another suffix.
        parts: All parts.
        parts_of_this_run: Parts that were not finished before this run.
        rows_of_this_run: The rows in these parts, with or without an answer.
        seconds: Duration of this run, including the start of its processes.
        scoring_seconds: Time from the start of the first part to the end of the last one.
        rows_per_s: ``rows_of_this_run`` divided by ``scoring_seconds``.
        peak_rss_bytes: The peak resident memory of this process and of an actor.
    """

    model: str
    version: str
    proof: str
    variant: str
    device: str
    input: str
    output: str
    rows: int
    quarantined_rows: int
    unreadable_files: int
    skipped_files: int
    parts: int
    parts_of_this_run: int
    rows_of_this_run: int
    actors: int
    seconds: float
    scoring_seconds: float
    rows_per_s: float
    peak_rss_bytes: dict[str, int]
    versions: dict[str, str]

    @property
    def is_complete(self) -> bool:
        """Whether every row has an answer."""
        return not self.quarantined_rows and not self.unreadable_files


def score(options: Options) -> Summary:
    """Score an input, or resume a run that was killed.

    Raises:
        ScoreError: The run cannot start or continue. The finished parts stay finished.
    """
    started_s = time.perf_counter()
    bundle, proof = _open_bundle(options.bundle)
    settings = _read_settings(options)
    source = find_source(options.input, options.format)
    mapping = _complete_mapping(options, bundle, source)
    _refuse_output_in_input(options)
    output = OutputFolder(options.output)
    identity = _identify(options, bundle, proof, settings, source, mapping)
    begun = output.read_manifest()
    plan = None
    if begun is None or options.restart:  # raises before anything is written or removed
        plan = _plan(source, bundle, mapping, options, identity)
    with output.lock():
        manifest = output.read_manifest()
        if manifest is not None and options.restart:
            output.remove_run()
            manifest = None
        if manifest is None:
            manifest = plan or _plan(source, bundle, mapping, options, identity)
            output.write_manifest(manifest)
        else:
            _require_same_run(manifest, identity, options)
        records = output.read_records(manifest.parts)
        job = Job(
            bundle=options.bundle.resolve(),
            settings=settings,
            proof=proof,
            location=source.location,
            output=_absolute(options.output),
            mapping=mapping,
            key=options.key,
            key_type=_key_type(manifest),
            batch_size=options.batch_size,
        )
        work = _score_rest(manifest, records, source, job, options)
        finished = output.read(SUMMARY, Summary)
        if not work.records and finished is not None:
            return finished
        output.collect_quarantine(manifest)
        seconds = time.perf_counter() - started_s
        summary = _summarise(manifest, source, output.url, records, work, seconds)
        output.write(SUMMARY, msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
        return summary


def _open_bundle(folder: Path) -> tuple[Bundle, str]:
    """Open the bundle; return it and its proof's id: the SHA-256 of its manifest of hashes."""
    try:
        bundle = Bundle.open(folder)
    except BundleError as error:
        raise ScoreError(str(error)) from error
    return bundle, hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest()


def _read_settings(options: Options) -> Settings:
    """Return the settings of the engine; the command line overrides the environment."""
    try:
        found = read_settings()
    except SettingsError as error:
        raise ScoreError(str(error)) from error
    is_remote = options.ray_address is not None
    try:
        device = options.device or found.device
        if is_remote and device == "auto":  # this machine may have another device than the actors
            device = "cpu"
        if not is_remote:
            device = choose_device(device)
        actors = options.actors or (1 if device == "cuda" else count_cores())
        threads = found.threads if options.threads is None else options.threads
        return Settings.model_validate(
            {
                "device": device,
                "variant": options.variant or found.variant,
                "tf32": found.tf32,
                "cuda_graphs": found.cuda_graphs,
                "threads": 1 if is_remote and threads == "auto" else threads,
                "max_image_pixels": found.max_image_pixels,
                "workers": actors,
                "max_batch_samples": options.batch_size,
            }
        )
    except (DeviceUnavailableError, ValueError) as error:
        raise ScoreError(str(error)) from error


def _complete_mapping(options: Options, bundle: Bundle, source: Source) -> InputColumns:
    """Return the columns of every input; by default an input's column has the same name."""
    manifest = bundle.manifest
    names = [spec.name for spec in manifest.inputs]
    if unknown := sorted(options.inputs.keys() - set(names)):
        raise ScoreError(
            f"--inputs names {', '.join(unknown)}; the inputs of {manifest.name} are "
            f"{', '.join(map(str, manifest.inputs))}"
        )
    if source.format != "parquet" and (options.inputs or options.key):
        raise ScoreError(
            f"--inputs and --key name columns, but the input's format {source.format} has none; "
            "omit these options"
        )
    if source.format == "images" and not takes_pictures(manifest):
        raise ScoreError(
            f"{manifest.name} takes {', '.join(map(str, manifest.inputs))} and no images (task "
            f"{manifest.task}); score Parquet files with its inputs as columns"
        )
    return {name: options.inputs.get(name, (name,)) for name in names}


def _refuse_output_in_input(options: Options) -> None:
    """Raise ScoreError if a resumed run would read the output as a part of its input."""
    inner, outer = (_absolute(url).rstrip("/") for url in (options.output, options.input))
    if inner == outer or inner.startswith(f"{outer}/"):
        raise ScoreError(
            f"the output {options.output} is inside the input {options.input}, where a later run "
            "would read it; name a folder elsewhere"
        )


def _absolute(url: str) -> str:
    """Make a local path absolute; return URLs unchanged."""
    return url if "://" in url or "::" in url else str(Path(url).resolve())


def _identify(
    options: Options,
    bundle: Bundle,
    proof: str,
    settings: Settings,
    source: Source,
    mapping: InputColumns,
) -> dict[str, str]:
    """Return everything that the answers depend on, in words for a message."""
    manifest = bundle.manifest
    columns = ", ".join(f"{name}={','.join(names)}" for name, names in mapping.items())
    return {
        "bundle": f"{manifest.name} {manifest.version} proof {proof}",
        "variant": settings.variant + ("-tf32" if settings.tf32 else ""),
        "device": settings.device,
        "input": _absolute(options.input),
        "the input's files": f"{len(source.files)} (fingerprint {source.sha256})",
        "format": source.format,
        "--inputs": columns if source.format == "parquet" else "",
        "--key": options.key or "",
        "--batch-size": str(options.batch_size),
    }


def _plan(
    source: Source,
    bundle: Bundle,
    mapping: InputColumns,
    options: Options,
    identity: dict[str, str],
) -> RunManifest:
    part_rows = options.part_rows or _choose_part_rows(bundle.manifest, options.batch_size)
    plan = plan_parts(source, bundle.manifest, mapping, options.key, part_rows)
    key = b"" if plan.key is None else pa.schema([plan.key]).serialize().to_pybytes()
    return RunManifest(identity, part_rows, key, tuple(plan.parts), tuple(plan.unreadable))


def _choose_part_rows(manifest: Manifest, batch_size: int) -> int:
    """Return the default number of rows in a part, a multiple of the batch size."""
    rows = PART_BYTES // sum(sample_bytes(spec) for spec in manifest.inputs)
    batches = min(rows, LARGEST_PART_ROWS) // batch_size
    return max(batches, SMALLEST_PART_BATCHES) * batch_size


def _key_type(manifest: RunManifest) -> pa.DataType | None:
    if not manifest.key_schema:
        return None
    return pa.ipc.read_schema(pa.py_buffer(manifest.key_schema)).field(0).type


def _require_same_run(manifest: RunManifest, identity: dict[str, str], options: Options) -> None:
    """Raise ScoreError if the output belongs to a run with another identity."""
    given = dict(identity)
    if options.part_rows is not None:
        given["--part-rows"] = str(options.part_rows)
    begun = manifest.identity | {"--part-rows": str(manifest.part_rows)}
    differences = [
        f"{name} was {begun.get(name) or 'none'} and is {value or 'none'}"
        for name, value in given.items()
        if begun.get(name) != value
    ]
    if differences:
        raise ScoreError(
            f"the output {options.output} belongs to another run: {'; '.join(differences)}; name "
            "another output, or use --restart to remove it and start again"
        )


def _score_rest(
    manifest: RunManifest,
    records: dict[str, PartRecord],
    source: Source,
    job: Job,
    options: Options,
) -> Work:
    """Score the parts that have no record; if there are none, start no processes."""
    rest = [_with_files(part, source) for part in manifest.parts if part.name not in records]
    if not rest:
        return Work([], 0, 0)
    done = sum(record.rows + record.quarantined for record in records.values())
    total = sum(part.rows for part in manifest.parts)
    new, began_s, ended_s = list[PartRecord](), math.inf, 0.0
    is_gpu = job.settings.device == "cuda"
    with connect(options.ray_address, max(job.settings.workers, count_cores())) as cluster:
        actors, cpus = job.settings.workers, 1
        if cluster.is_remote:
            job = _with_bundle_files(job)
            cpus = max(1, int(job.settings.threads))
            actors = options.actors or (cluster.gpus if is_gpu else cluster.cpus // cpus) or 1
        bar = tqdm(
            total=total,
            initial=done,
            unit="row",
            unit_scale=True,
            file=sys.stderr,
            disable=None if options.show_progress else True,
        )
        with bar:
            for record in score_parts(rest, job, actors, cpus=cpus, gpus=float(is_gpu)):
                new.append(record)
                ended_s = time.perf_counter()
                began_s = min(began_s, ended_s - record.seconds)
                bar.update(record.rows + record.quarantined)
    if len(new) != len(rest):
        raise ScoreError(
            f"Ray returned only {len(new)} of {len(rest)} parts; run the same command to resume"
        )
    return Work(new, min(actors, len(rest)), ended_s - began_s)


def _with_files(part: Part, source: Source) -> Part:
    if not isinstance(part, ImagesPart):
        return part
    files = source.files[part.first_file : part.first_file + part.rows]
    return msgspec.structs.replace(part, files=tuple(file.name for file in files))


def _with_bundle_files(job: Job) -> Job:
    """Return the job with the bundle's files, for machines that cannot read the bundle's folder."""
    files = {path.name: path.read_bytes() for path in job.bundle.iterdir()}
    return Job(**{**vars(job), "bundle_files": files})


def _summarise(
    manifest: RunManifest,
    source: Source,
    output: str,
    records: dict[str, PartRecord],
    work: Work,
    seconds: float,
) -> Summary:
    identity = manifest.identity
    model, version, _, proof = identity["bundle"].split(" ")
    all_records = [*records.values(), *work.records]
    return Summary(
        model=model,
        version=version,
        proof=proof,
        variant=identity["variant"],
        device=identity["device"],
        input=identity["input"],
        output=_absolute(output),
        rows=sum(record.rows for record in all_records),
        quarantined_rows=sum(record.quarantined for record in all_records),
        unreadable_files=len(manifest.unreadable),
        skipped_files=source.skipped,
        parts=len(manifest.parts),
        parts_of_this_run=len(work.records),
        rows_of_this_run=work.rows,
        actors=work.actors,
        seconds=round(seconds, 3),
        scoring_seconds=round(work.seconds, 3),
        rows_per_s=round(work.rows / work.seconds, 1) if work.records else 0,
        peak_rss_bytes={
            "driver": peak_rss_bytes(),
            "actor": max((record.peak_rss_bytes for record in work.records), default=0),
        },
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # one of the two builds of ONNX Runtime
            continue
    return found
