"""The storage SCP of pynetdicom's documentation: `python -m tests.bench.plain_scp FOLDER PORT`."""

import sys
from pathlib import Path

from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.events import Event


def main(folder: str, port: str) -> None:
    def store(event: Event) -> int:
        instance = event.dataset
        instance.file_meta = event.file_meta
        instance.save_as(Path(folder) / f"{instance.SOPInstanceUID}.dcm", enforce_file_format=True)
        return 0x0000

    ae = AE(ae_title="PLAIN")
    ae.supported_contexts = AllStoragePresentationContexts
    ae.start_server(("127.0.0.1", int(port)), evt_handlers=[(evt.EVT_C_STORE, store)])


if __name__ == "__main__":
    main(*sys.argv[1:])
