package inventory

import "bytes"

// processFinder reads the environment of a process (proc_pid_environ(5)).
var processFinder = finder{
	kind: Process,
	read: func(r *reader) error {
		at := 0
		for pair := range bytes.SplitSeq(r.data, []byte{0}) {
			if name, value, ok := bytes.Cut(pair, []byte("=")); ok && len(name) > 0 {
				n := len(r.found)
				r.consider(named, string(name), string(name), value, at+len(name)+1, at+len(pair))
				for i := n; i < len(r.found); i++ {
					r.found[i].Line = 0 // it has none
				}
			}
			at += len(pair) + 1
		}
		return nil
	},
	replace: func(f *Finding, _ string) string {
		return "vouch exec --credential NAME=" + ShellQuote(f.Item) + " -- COMMAND"
	},
	hint: func(place) string { return "where the program is started, in the place of the variable" },
}

// historyFinder reads a file as it was in a commit, of no other kind: a program mostly, in
// which names tell nothing.
var historyFinder = finder{
	kind: History,
	read: func(r *reader) error { r.shapes(); return nil },
	replace: func(*Finding, string) string {
		return "rotate it at its source: it stays in every clone, whatever is edited"
	},
}
