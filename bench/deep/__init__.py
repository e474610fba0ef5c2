"""Deep benchmarks: what only shows with millions of messages, or after a while.

    rows.py        what is measured, and the goals
    backlog.py     a deep backlog: memory, restarts, the rate at which it is emptied, the disk afterwards
    stragglers.py  a few messages stay while millions flow; an idle queue beside a busy one: the journal's size
    leaks.py       consumers and publishers come, go and are killed: everything returns to where it was
    holds.py       purges, storms of restarts and failures: how long the loop is held
    watched.py     the broker with a watch on its loop: which callback held it how long, and what it was doing
    ping.py, churn.py, storm.py, fill.py    load processes; jobs.py is what they are told

`python -m bench.deep` takes an hour and a half; `--scale 0.1` runs with a tenth of the messages, `--rows
backlog,stragglers` less.
Every broker here but that of `leaks` is watched, which costs it about a microsecond a callback.
"""
