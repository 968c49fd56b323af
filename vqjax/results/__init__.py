"""What came out of runs: records, entries of results.json, intervals and verdicts."""
