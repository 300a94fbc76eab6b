"""Prints KServe's client's view of a service as JSON; runs where KServe's SDK is installed.

python -m tests.service.kserve_asks URL GRPC_ADDRESS GOLDEN
"""

import asyncio
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


def _request(images: Any, *, binary: bool, wanted_binary: bool) -> Any:
    tensor = InferInput("images", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images, binary_data=binary)
    output = RequestedOutput("logits", parameters={"binary_data": wanted_binary})
    return InferRequest("cnn", [tensor], request_id="7", request_outputs=[output])


async def _ask_by_grpc(address: str, images: Any) -> dict[str, Any]:
    async with InferenceGRPCClient(address) as client:
        answer = await client.infer(_request(images, binary=True, wanted_binary=True))
        logits = next(output for output in answer.outputs if output.name == "logits")
        return {
            "id": answer.id,
            "logits": logits.as_numpy().tolist(),
            "live": await client.is_server_live(),
            "ready": [await client.is_server_ready(), await client.is_model_ready("cnn")],
        }


async def _ask(url: str, images: Any) -> dict[str, Any]:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    found: dict[str, Any] = {
        "ready": [await client.is_model_ready(url, name) for name in ("cnn", "nobody")]
    }
    for form in ("json", "binary"):
        binary = form == "binary"
        request = _request(images, binary=binary, wanted_binary=binary)
        answer = await client.infer(url, request, model_name="cnn")
        logits = next(output for output in answer.outputs if output.name == "logits")
        found[form] = {"id": answer.id, "logits": logits.as_numpy().tolist()}
    wrong = _request(images.reshape(len(images), 784), binary=True, wanted_binary=True)
    try:
        await client.infer(url, wrong, model_name="cnn")
    except httpx.HTTPStatusError as error:
        found["refusal"] = str(error)
    for probe in (client.is_server_live, client.is_server_ready):
        try:
            found[probe.__name__] = await probe(url)
        except json.JSONDecodeError as error:
            found[probe.__name__] = str(error)
    await client.close()
    return found


if __name__ == "__main__":
    with np.load(sys.argv[3]) as golden:
        samples = golden["inputs/images"]
    found = asyncio.run(_ask(sys.argv[1], samples))
    found["grpc"] = asyncio.run(_ask_by_grpc(sys.argv[2], samples))
    print(json.dumps(found))  # noqa: T201
