"""LaMed Node: receives CT and MR studies, has them read, returns draft SR and SEG.

    scp       associations come in           ways_in   what else comes in
    spool     instances lie on disk          intake    a study is complete
    routing   which protocol, series, why    jobs      the queue
    volume    instances -> one volume        worker    THE STORY: read it first
    results   what a reading leaves          scu       what goes out, and how
    delivery  where to, until proven         retention what leaves, and when
    ledger    everything is remembered       audit     who is told of it
    network   PDUs, DIMSE, Part 10, TLS      qa        the pages of the QA reader
    commands  the command line               config, errors, instance: the leaves

`__main__` and `serve` put the parts together. Who may know whom stands in setup.cfg, as storeys.
"""

__all__: list[str] = []
