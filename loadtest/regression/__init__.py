"""Tests whether a commit is slower than another, by paired, interleaved rounds of both."""
