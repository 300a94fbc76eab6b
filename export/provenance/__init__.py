"""Weight provenance: check that every number in an exported file comes from the checkpoint.

Nothing is run on samples, so a changed weight is found however little it affects any output.

Two things are compared. One is the *program*: PyTorch's exported graph of aten operators, which
holds the checkpoint's tensors under their names. The other is the *file*: an ONNX graph, whose
stored tensors may have been renamed, joined, split, transposed or computed in advance.

Place
    The exporter names values of the ONNX graph after nodes of the program. The part between one
    such common value and the common values before it is a **region**: a few ONNX nodes and the few
    aten operators that compute the same (``regions``). A **place** is one input of one ONNX node
    in a region. A tensor is compared only with the tensors of its own region, so that two layers
    with swapped weights do not pass, although every number is the checkpoint's.

Claim
    A tensor at a place is **traced** when something in the program claims it, in this order:

    1. The rule for the node and the operator says which argument the input takes (``rules``):
       ``Conv``'s input 1 is ``conv2d``'s ``weight``. Rules also say what attributes must be.
    2. It is one of the forms that the region's tensors may take in a file (``forms``): bit-equal,
       reordered, joined, cut, computed from parameters alone, or folded with a BatchNorm. Forms
       that need arithmetic are computed here in float64 and compared within a few roundings.
    3. It is a constant of the code, such as the 6 of a ReLU6.

Problem
    A value that does not match is a problem if the expected value is known: exactly one operator
    has a rule for the node, most numbers agree with a tensor of the region, or the region has an
    unclaimed tensor that fits. A tensor of the checkpoint that is missing in the file is a problem
    too, unless leaving it out changes nothing (a bias of zeros).

Untraced
    Anything else that a node takes. It is counted, and the report says that only samples prove it.

A float16 or int8 file is compared with the float32 file that it was made from, node by node
(``reduced``). TorchScript and ``.pt2`` files keep the tensors' names and are compared tensor by
tensor (``state``).
"""
