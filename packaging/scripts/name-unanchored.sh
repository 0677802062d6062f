# Entries of an earlier version may lack an anchor. They are not in force once
# the daemon restarts, which is said before it does.
unanchored=$(vouch check 2>&1 | grep 'has no anchor') || true
if [ -n "$unanchored" ]; then
	echo "vouchd: after this upgrade these entries are no longer in force; the others are:" >&2
	echo "$unanchored" >&2
fi
