"""A request and what became of it, as log and traces tell it."""

from dataclasses import dataclass


@dataclass
class Exchange:
    """One request; the model and its batch are known once it is answered.

    Attributes:
        request_id: As in the answer's header.
        begun_s: When its head had been read, by ``time.perf_counter``.
        client: Address and port.
        method: HTTP's.
        path: As it was sent.
        model: Who answered, if a model did.
        batch_images: Images of the batch that it was in.
    """

    request_id: bytes
    begun_s: float
    client: tuple[str, int] | None
    method: str
    path: str
    model: str | None = None
    batch_images: int | None = None
