"""The files of the page over HTTP: a closed table of paths and a strict policy."""

import re

import httpx
import pytest

from service.web.pages import FILES, FOLDER, MEDIA_TYPES, PAGE_PATHS, SWAGGER_UI


@pytest.mark.parametrize("path", list(FILES))
def test_a_file_comes_with_type_policy_and_etag(path: str, service_url: str) -> None:
    """The bytes on disk, with their media type and a policy that allows no other host."""
    answer = httpx.get(service_url + path)
    assert answer.status_code == 200
    assert answer.content == FILES[path].read_bytes()
    assert answer.headers["content-type"] == MEDIA_TYPES[FILES[path].suffix]
    policy = answer.headers["content-security-policy"].split("; ")
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert not any("unsafe" in rule or "*" in rule or "http" in rule for rule in policy)
    assert answer.headers["x-content-type-options"] == "nosniff"
    head = httpx.head(service_url + path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.content))
    assert head.headers["etag"] == answer.headers["etag"]


@pytest.mark.parametrize(
    ("known", "status"),
    [("{}", 304), ("W/{}", 304), ('"another", {}', 304), ("*", 304), ('"another"', 200), ("", 200)],
)
def test_a_current_copy_is_not_sent_again(known: str, status: int, service_url: str) -> None:
    """304 for a weak or strong ETag, also one of several; 200 for any other ETag."""
    etag = httpx.get(service_url + "/").headers["etag"]
    answer = httpx.get(service_url + "/", headers={"if-none-match": known.format(etag)})
    assert answer.status_code == status
    assert (answer.content == b"") == (status == 304)
    assert answer.headers["etag"] == etag
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    [
        "/page",
        "/page/",
        "/page/nothing.js",
        "/page/../app.py",
        "/page/..%2fapp.py",
        "/page/%2e%2e/settings.py",
        "/page/....//app.py",
        "/page//etc/passwd",
        "/page/app.js%00.css",
        "/page/index.html",
        "/pages.py",
    ],
)
def test_other_paths_are_not_found(path: str, service_url: str) -> None:
    """404 with a JSON error, however the path is written."""
    # httpx would normalize the path.
    answer = httpx.get(httpx.URL(service_url).copy_with(raw_path=path.encode()))
    assert answer.status_code == 404
    assert list(answer.json()) == ["error"]


def test_other_methods_are_refused(service_url: str) -> None:
    """405 with the allowed methods in Allow."""
    answer = httpx.post(service_url + "/", content=b"x")
    assert answer.status_code == 405
    assert "GET" in answer.headers["allow"]
    assert list(answer.json()) == ["error"]


def test_every_file_is_served_and_names_no_other_host() -> None:
    """Each file of the folder has a path; no file contains a URL of another host."""
    assert len(FILES) == len(list(FOLDER.iterdir()))
    for path, file in FILES.items():
        content = file.read_bytes()
        named = re.findall(rb"(?:https?:)?//[a-z0-9][^\s\"'<>)]*\.[a-z]{2,}[^\s\"'<>)]*", content)
        assert set(named) <= {b"http://www.w3.org/2000/svg"}, path
        assert len(content.splitlines()) < 300, path


def test_no_path_of_a_model_is_open_without_a_key() -> None:
    """Only the files of the page and of Swagger UI are open."""
    assert {*FILES, *SWAGGER_UI} == PAGE_PATHS
    assert not any(path.startswith(("/models", "/predict", "/v2")) for path in PAGE_PATHS)
