"""Any module can be exported through the same gate, with several inputs, outputs and branches."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import tritonclient.http as triton
from safetensors.torch import save_file

from export.__main__ import main
from export.bundle.golden import Golden
from export.bundle.session import OnnxModel
from export.bundle.store import Bundle
from loadtest.server import running_service
from tests.export.subjects import pair, pair_samples

WIDTH = 4


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: weights, samples for the proof and others for calibration."""
    folder = tmp_path_factory.mktemp("given")
    save_file(pair(WIDTH).state_dict(), folder / "pair.safetensors")
    samples = pair_samples(300, seed=0)
    targets = np.arange(300) % 3
    np.savez(folder / "samples.npz", **samples, targets=targets)  # type: ignore[arg-type]
    np.savez(folder / "calibration.npz", **pair_samples(128, seed=1))  # type: ignore[arg-type]
    return folder


def _command(given: Path, out: Path, *further: str) -> list[str]:
    return [
        *("build", "--model", "tests.export.subjects:pair", "--arguments", f'{{"width": {WIDTH}}}'),
        *("--checkpoint", str(given / "pair.safetensors")),
        *("--inputs", str(given / "samples.npz"), "--out", str(out), *further),
    ]


@pytest.fixture(scope="module")
def pair_bundle(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder's bundle, in all variants; tests must not change it."""
    out = tmp_path_factory.mktemp("pair") / "pair"
    further = ["--logits", "kind", "--calibration", str(given / "calibration.npz")]
    further += ["--input", "picture=FP32[-1,1,8,8]", "--input", "numbers=FP32[-1,4]"]
    assert main(_command(given, out, *further)) == 0
    return out


def test_two_inputs_and_two_outputs_are_exported_and_proven(pair_bundle: Path) -> None:
    """The manifest names all tensors, every variant passed, and every mutant was killed."""
    manifest = Bundle.open(pair_bundle).manifest
    assert [str(tensor) for tensor in manifest.inputs] == [
        *("picture=FP32[-1,1,8,8]", "numbers=FP32[-1,4]")
    ]
    assert [(t.name, t.shape, t.kind) for t in manifest.outputs] == [
        *(("kind", (-1, 3), "logits"), ("score", (-1,), "values"))
    ]
    assert {v.variant for v in manifest.parity if v.passed} == {
        *("onnx", "onnx-fp16", "torchscript", "torchscript-frozen", "pt2")
    }
    # Each of its products is the last one before an output.
    assert "none of its weights would be in int8" in manifest.not_built["onnx-int8"]
    assert manifest.factory is not None
    assert manifest.factory.arguments == {"width": WIDTH}
    assert manifest.training is None
    figures = json.loads((pair_bundle / "parity.json").read_text())
    assert set(figures["rows"][0]["outputs"]) == {"kind", "score"}
    assert all(fault["caught_by"] or fault["not_applicable"] for fault in figures["faults"])
    assert figures["files"]["onnx"]["weights"]["folded"] == 2  # one stays unfolded, after the join


def test_the_file_answers_as_the_module_does(pair_bundle: Path) -> None:
    """Named inputs in any batch size give the module's own outputs."""
    model = OnnxModel(Bundle.open(pair_bundle).model_path("onnx"), "cpu")
    samples = pair_samples(5, seed=2)
    answers = model(samples)
    with torch.no_grad():
        expected = pair(WIDTH).eval()(*(torch.from_numpy(a) for a in samples.values()))
    for name, tensor in expected.items():
        assert np.allclose(answers[name], tensor.numpy(), atol=1e-5)
    golden = Golden.load(Bundle.open(pair_bundle).path("golden"))
    assert set(golden.inputs) == {"picture", "numbers"}


@pytest.mark.parametrize("variant", ["onnx", "onnx-fp16", "torchscript"])
def test_it_is_served_to_clients_of_others(variant: str, pair_bundle: Path, tmp_path: Path) -> None:
    """/v2 serves two inputs and outputs as JSON and binary; /predict names the endpoint."""
    settings = {"INFERENCE_BUNDLES": str(pair_bundle.parent), "INFERENCE_VARIANT": variant}
    samples = pair_samples(70, seed=2)  # more than a batch
    with torch.no_grad():
        expected = pair(WIDTH).eval()(*(torch.from_numpy(a) for a in samples.values()))
    with running_service(tmp_path / "service.log", settings=settings) as url:
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        described = client.get_model_metadata("pair")
        assert [tensor["name"] for tensor in described["outputs"]] == ["kind", "score"]
        for binary in (True, False):
            inputs = []
            for name, array in samples.items():
                inputs.append(triton.InferInput(name, list(array.shape), "FP32"))
                inputs[-1].set_data_from_numpy(array, binary_data=binary)
            outputs = [triton.InferRequestedOutput(n, binary_data=binary) for n in expected]
            found = client.infer("pair", inputs, outputs=outputs)
            for name, tensor in expected.items():
                loose = 0.01 if variant == "onnx-fp16" else 1e-5
                assert np.allclose(found.as_numpy(name), tensor.numpy(), atol=loose)
        client.close()
        refused = httpx.post(f"{url}/predict", json={"images": [[0] * 28] * 28})
        assert refused.status_code == 400
        assert "send its requests to /v2/models/pair/infer" in refused.json()["error"]
        card = httpx.get(f"{url}/models").json()["models"][0]
        assert (card["variant"], card["golden"]["wrong_labels"]) == (variant, 0)


def test_it_is_proven_again_from_the_bundle_with_the_same_samples(
    pair_bundle: Path, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The quick check needs no samples; the full one needs exactly the same file."""
    assert main(["check", str(pair_bundle), "--quick"]) == 0
    assert main(["check", str(pair_bundle), "--quick", "--variant", "onnx-fp16"]) == 0
    check = ["check", str(pair_bundle), "--model", "tests.export.subjects:pair"]
    check += ["--arguments", f'{{"width": {WIDTH}}}']
    assert main([*check, "--inputs", str(given / "samples.npz")]) == 0
    assert main(check) == 66
    assert main([*check, "--inputs", str(given / "calibration.npz")]) == 66
    assert "is not the file that the bundle was proven with" in capsys.readouterr().err


def test_without_calibration_int8_is_left_out_and_said_so(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No scale is invented: the output names the missing variant and what it needs."""
    assert main(_command(given, tmp_path / "pair", "--variants", "onnx,onnx-int8")) == 0
    assert "onnx-int8" not in Bundle.open(tmp_path / "pair").variants
    assert "NOT BUILT: no calibration samples were given" in capsys.readouterr().out


def test_task_labels_and_preprocessing_reach_the_manifest(given: Path, tmp_path: Path) -> None:
    """The manifest has the command line's values, which are all that the service reads."""
    preprocessing = {"crop": [8, 8], "channels": 1, "layout": "NCHW", "mean": [0], "std": [1]}
    (tmp_path / "preprocessing.json").write_text(json.dumps(preprocessing))
    (tmp_path / "labels.txt").write_text("square\ncircle\nétoile\n")
    further = ["--variants", "onnx", "--logits", "kind", "--task", "image-classification"]
    further += ["--labels", str(tmp_path / "labels.txt")]
    further += ["--preprocessing", str(tmp_path / "preprocessing.json")]
    assert main(_command(given, tmp_path / "pair", *further)) == 0
    manifest = Bundle.open(tmp_path / "pair").manifest
    assert (manifest.task, manifest.labels) == (
        "image-classification",
        ("square", "circle", "étoile"),
    )
    assert manifest.preprocessing is not None
    assert manifest.preprocessing.crop == (8, 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--task", "image-classification"], "needs --labels and --preprocessing"),
        (["--labels", "nowhere.txt"], "cannot be used"),
        (["--preprocessing", "pyproject.toml"], "cannot be used"),
        (
            ["--model", "tests.nowhere:pair"],
            "expected package.module:function that can be imported",
        ),
        (["--model", "tests.export.subjects:no_module"], "returned a str"),
        (["--arguments", '{"depth": 3}'], "unexpected keyword argument 'depth'"),
        (["--arguments", "width=4"], "is not valid JSON"),
        (["--input", "picture=UINT8[-1,8,8]"], "declared: picture=UINT8[-1,8,8]"),
        (
            ["--logits", "class"],
            "the module has 2 outputs; the names given are kind, score, logits class",
        ),
        (["--output", "one"], "the module has 2 outputs; the names given are one"),
        (["--inputs", "nowhere.npz"], "numpy.savez"),
        (["--checkpoint", "nowhere.safetensors"], "do not exist"),
    ],
)
def test_what_cannot_be_used_is_answered_in_words(
    change: list[str], words: str, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 64 with what came and what was expected, and there is no bundle."""
    arguments = [] if "--arguments" in change else ["--arguments", f'{{"width": {WIDTH}}}']
    if "subjects:no_module" in change[-1]:
        arguments = ["--arguments", "{}"]
    command = _command(given, tmp_path / "out")
    assert main([*command, *arguments, *change]) == 64
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["pair.pth", "pair.safetensors"])
def test_a_pickle_is_refused_with_the_way_to_convert_it(
    name: str, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is detected by name or content, is not executed, and the shown command works."""
    torch.save(pair(WIDTH).state_dict(), tmp_path / name)
    command = _command(given, tmp_path / "out", "--checkpoint", str(tmp_path / name))
    assert main(command) == 64
    error = capsys.readouterr().err
    assert "is a pickle" in error
    assert "weights_only=True" in error
    assert "save_file" in error


def test_samples_that_do_not_fit_each_other_are_refused(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message for arrays of different lengths lists what was found."""
    odd = {"picture": np.zeros((9, 1, 8, 8), "f"), "numbers": np.zeros((8, 4), "f")}
    np.savez(tmp_path / "odd.npz", **odd)  # type: ignore[arg-type]
    command = _command(given, tmp_path / "out", "--inputs", str(tmp_path / "odd.npz"))
    assert main(command) == 64
    assert "picture float32 (9, 1, 8, 8), numbers float32 (8, 4)" in capsys.readouterr().err
