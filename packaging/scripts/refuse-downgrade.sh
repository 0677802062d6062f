# An older vouchd cannot read what a newer one has written. The installed
# package says which format of the state it writes, and this one knows up to
# @STATE_FORMAT@.
if [ -r /usr/share/vouchd/state-format ]; then
	installed=$(cat /usr/share/vouchd/state-format)
	if [ "$installed" -gt @STATE_FORMAT@ ]; then
		echo "vouchd: the installed version keeps its state in format $installed, and this one (@VERSION@) knows up to @STATE_FORMAT@." >&2
		echo "vouchd: stay with the installed version, or remove it and /var/lib/vouchd first, which ends this host's identities and its log." >&2
		exit 1
	fi
fi
