"""LaMed Node: receives CT and MR studies, has them read, returns draft SR and SEG.

    scp       associations come in           spool     instances lie on disk
    intake    a study is complete            routing   which protocol, which series, why
    jobs      the queue                      worker    THE STORY: read it first
    volume    instances -> one volume        scu       results go out
    delivery  retries and proof              ledger    everything is remembered
    profiles  who can show what              validator what is not as it must be is held
    read_back radiologists answer            run_record  how an object came to be
    qa        the pages of the QA reader     config, errors, instance: the leaves

`__main__` is the command line and the only place where the parts are put together.
"""

__all__: list[str] = []
