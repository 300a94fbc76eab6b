"""Metrics know what is served, and nothing that a stranger can multiply."""

import httpx


def test_paths_that_nobody_serves_are_refused_in_one_shape_and_leave_no_metrics(
    service_url: str,
) -> None:
    """A scan of many paths gets JSON each time, and /metrics stays as long as it was."""
    with httpx.Client(base_url=service_url) as client:
        before = len(client.get("/metrics").text.splitlines())
        for i in range(300):
            answer = client.get(f"/admin/{i}")
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
            assert answer.json() == {"error": f"Not Found: GET /admin/{i}"}
        assert client.post("/livez").json() == {
            "error": "Method Not Allowed: POST /livez; allowed: GET, HEAD"
        }
        assert len(client.get("/metrics").text.splitlines()) <= before + 2
