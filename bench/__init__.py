"""Benchmarks: the broker and a bare probe under the same load, interleaved in one run; results as ratios.

    probe.py   the ceiling: what the same traffic costs without a broker's features
    load.py    producers and consumers, each in a process of its own, over the raw contract
    failover.py  kill -9 of a consumer, again and again
    rows.py    what is measured, and the goals
    figures.py   percentiles, verdicts, the table

`python -m bench --quick` takes about two minutes, `python -m bench` about twenty and writes `bench/RESULTS.md`.
"""
