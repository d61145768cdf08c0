"""What goes over the wire: PDUs, DIMSE messages, files of PS3.10, multipart bodies, TLS."""
