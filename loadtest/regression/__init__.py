"""Is a commit slower? Paired, interleaved rounds of two versions."""
