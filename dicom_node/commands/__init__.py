"""The commands of `lamed-node`, and what all of them take."""
