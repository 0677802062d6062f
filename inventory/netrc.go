package inventory

import "bytes"

// netrcFinder reads logins at machines, in the form that ftp(1) began and apt has for
// archives (apt_auth.conf(5)).
var netrcFinder = finder{
	kind: Netrc,
	is: func(p place) bool {
		return p.name == ".netrc" || p.name == "_netrc" || p.name == "auth.conf" && p.dir == "apt" || p.dir == "auth.conf.d" && p.up == "apt"
	},
	read: func(r *reader) error {
		machine := "default"
		for at := 0; at < len(r.data); {
			word, start, next := netrcWord(r.data, at)
			if start == next {
				break
			}
			at = next
			switch string(word) {
			case "default":
				machine = "default"
			case "machine":
				word, _, next = netrcWord(r.data, at)
				machine, at = string(word), next
			case "login", "account":
				_, _, at = netrcWord(r.data, at)
			case "password":
				word, start, next = netrcWord(r.data, at)
				r.whole("machine "+machine+" password", "", word, start, start+len(word))
				at = next
			case "macdef":
				if i := bytes.Index(r.data[at:], []byte("\n\n")); i >= 0 {
					at += i
				} else {
					at = len(r.data)
				}
			}
		}
		return nil
	},
	replace: migrateFile,
}

// netrcWord returns the next word, where it begins without its quotes, and what follows.
func netrcWord(data []byte, at int) (word []byte, start, next int) {
	for at < len(data) && (isBlank(data[at]) || data[at] == '#') {
		if data[at] == '#' {
			for at < len(data) && data[at] != '\n' {
				at++
			}
			continue
		}
		at++
	}
	start = at
	if at < len(data) && data[at] == '"' {
		if i := bytes.IndexAny(data[at+1:], "\"\n"); i >= 0 && data[at+1+i] == '"' {
			return data[at+1 : at+1+i], at + 1, at + 2 + i
		}
	}
	for at < len(data) && !isBlank(data[at]) {
		at++
	}
	return data[start:at], start, at
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }
