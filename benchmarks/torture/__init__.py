"""Attacks on the library, bounded in number and time: what docs/reliability.md promises, tried thousands of times on tiny models.

    python -m benchmarks.torture            (or: make torture)

A trial may end in the right result or in an error of the library. Everything else is a failure: a traceback, more than 20 CPU seconds or 2 minutes, a file of
somebody else that is replaced, a result that is wrong without a word. Writes docs/results/torture.json; fails if any trial did.
"""
