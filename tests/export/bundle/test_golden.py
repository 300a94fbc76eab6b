"""Golden samples: the scales that errors are measured against."""

import numpy as np
import pytest

from export.bundle.golden import Golden, judge_answers
from export.bundle.manifest import TensorSpec
from export.bundle.tolerances import tolerance_for

OUTPUT = TensorSpec(name="maps", datatype="FP32", shape=(-1, 100))


@pytest.mark.parametrize(("error", "passes"), [(3e-7, True), (3e-6, False)])
def test_a_unit_that_few_samples_activate_is_held_against_the_whole_layer(
    error: float, passes: bool
) -> None:
    """A rarely active unit's rounding is an error of its channel, but not of feature maps."""
    fp64 = np.random.default_rng(0).uniform(0.5, 1, (2, 100))
    fp64[:, 2] = 0.01
    fp32 = fp64.astype(np.float32)
    answer = fp32.copy()
    answer[0, 2] += np.float32(error)
    inputs = {"x": np.zeros((2, 1), np.float32)}
    golden = {
        one_scale: Golden(inputs, {"maps": fp32}, {"maps": fp64}, np.full(2, -1), one_scale)
        for one_scale in (False, True)
    }
    tolerance = tolerance_for("onnx", "cpu")
    found = {
        one_scale: judge_answers(samples, {"maps": answer}, [OUTPUT], tolerance)
        for one_scale, samples in golden.items()
    }
    assert (found[True].failures == []) == passes
    assert found[True].scaled_error == pytest.approx(error, rel=0.1)
    assert found[False].scaled_error == pytest.approx(16 * error, rel=0.1)
    assert found[False].failures
