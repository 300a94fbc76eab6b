"""What a query may say: which model is asked and, of an uploaded picture, what shall be shown."""

from starlette.datastructures import QueryParams

from service.errors import InvalidInputError, shown

MODEL, SHOW = "model", "show"
SHOWABLE = "image"


def model_and_show(
    query: QueryParams, known: tuple[str, ...] = (MODEL,)
) -> tuple[str | None, bool]:
    """The model's name, if there is one, and whether the image shall come back as it was read.

    Args:
        query: What stands behind the URL's question mark.
        known: Which of ``model`` and ``show`` the endpoint reads.

    Raises:
        InvalidInputError: An unknown word, one said twice, or something else that shall be shown.
    """
    asked: dict[str, str] = {}
    for name, value in query.multi_items():
        if name not in known:
            raise InvalidInputError(
                f"unknown in the query: {shown(name)}; known: {', '.join(known)}"
            )
        if name in asked:
            raise InvalidInputError(f"the query says {name} twice; say it once")
        asked[name] = value
    if asked.get(SHOW, SHOWABLE) != SHOWABLE:
        raise InvalidInputError(
            f"the query asks to show {shown(asked[SHOW])}; there is only show={SHOWABLE}, the "
            "28x28 pixels as the model reads them"
        )
    return asked.get(MODEL), SHOW in asked
