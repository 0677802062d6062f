package text

import "bytes"

// INI reads sections of KEY = VALUE lines, or with a colon: the form that AWS, Python,
// git, systemd, npm and (as far as its values are on one line) TOML have. A value in
// quotes is without them.
func INI(data []byte) (list []Entry) {
	section := ""
	for at := textStart(data); at < len(data); {
		end := lineEnd(data, at)
		line := bytes.TrimRight(data[at:end], " \t\r")
		trimmed := bytes.TrimLeft(line, " \t")
		indent := len(line) - len(trimmed)
		switch {
		case len(trimmed) == 0 || trimmed[0] == '#' || trimmed[0] == ';':
		case trimmed[0] == '[':
			if i := bytes.LastIndexByte(trimmed, ']'); i > 0 {
				section = string(bytes.Trim(trimmed[1:i], "[] \t"))
			}
		default:
			if e, ok := pair(data, at+indent, at+len(line)); ok {
				e.Section = section
				list = append(list, e)
			}
		}
		at = end + 1
	}
	return list
}

// pair reads KEY = VALUE between two bytes. In //host/:_authToken=VALUE, which npm has,
// the key has a colon itself.
func pair(data []byte, from, to int) (e Entry, ok bool) {
	i := bytes.IndexByte(data[from:to], '=')
	if i < 0 {
		i = bytes.IndexByte(data[from:to], ':')
	}
	if i <= 0 {
		return e, false
	}
	e.Key = string(bytes.Trim(data[from:from+i], " \t\""))
	start := from + i + 1
	for start < to && (data[start] == ' ' || data[start] == '\t') {
		start++
	}
	e.Value, e.Start, e.End = data[start:to], start, to
	if start < to && (data[start] == '"' || data[start] == '\'') {
		if i := closing(data[:to], start); i >= 0 {
			e.Value, e.Start, e.End = unescaped(data[start+1:i], data[start]), start+1, i
		}
	}
	return e, e.Key != ""
}
