"""Benchmarks: the broker and a bare probe under the same load, interleaved in one run; results as ratios.

    probe.py      the ceiling: what the same traffic costs without a broker's features
    load.py       producers and consumers, each in a process of its own, over the raw contract
    failover.py   kill -9 of a consumer, again and again; victim.py is who dies
    rows.py       what is measured, and the goals
    processes.py  starts all of these, and the broker; nothing outlives the benchmark
    figures.py    percentiles, verdicts, the table
    machine.py    what it ran on, and who else ran there

`python -m bench --quick` takes two minutes; `python -m bench` a quarter of an hour on a quiet machine, and writes
`bench/RESULTS.md`. `--rows both,latency` and `--sides probe` measure less.
"""
