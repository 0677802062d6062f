package text

import "bytes"

// Unit reads the settings of a unit of systemd (systemd.syntax(7)): each KEY=VALUE, in
// which a backslash at the end of a line goes on with the next.
func Unit(data []byte) (list []Entry) {
	section := ""
	for at := 0; at < len(data); {
		end := lineEnd(data, at)
		for end < len(data) && end > at && data[end-1] == '\\' {
			end = lineEnd(data, end+1)
		}
		line := bytes.TrimRight(data[at:end], " \t\r")
		switch i := bytes.IndexByte(line, '='); {
		case len(line) == 0 || line[0] == '#' || line[0] == ';':
			end = lineEnd(data, at) // a comment has no next line
		case line[0] == '[':
			section = string(bytes.Trim(line, "[]"))
		case i > 0:
			start := i + 1
			for start < len(line) && (line[start] == ' ' || line[start] == '\t') {
				start++
			}
			list = append(list, Entry{
				Section: section, Key: string(bytes.TrimSpace(line[:i])),
				Value: line[start:], Start: at + start, End: at + len(line),
			})
		}
		at = end + 1
	}
	return list
}

// Words returns the assignments in the value of Environment=, which are apart by blanks
// and may have quotes around them.
func Words(s Entry) (list []Entry) {
	v := s.Value
	for at := 0; at < len(v); {
		c := v[at]
		if c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\\' {
			at++
			continue
		}
		start, end, next := at, at, 0
		quoted := (c == '"' || c == '\'') && closing(v, at) >= 0
		if quoted {
			start, end = at+1, closing(v, at)
			next = end + 1
		} else {
			for end < len(v) && v[end] != ' ' && v[end] != '\t' && v[end] != '\n' {
				end++
			}
			next = end
		}
		if i := bytes.IndexByte(v[start:end], '='); i > 0 {
			from, to := start+i+1, end
			if !quoted && to-from >= 2 && (v[from] == '"' || v[from] == '\'') && v[to-1] == v[from] {
				from, to = from+1, to-1
			}
			list = append(list, Entry{
				Section: s.Section, Key: string(v[start : start+i]),
				Value: unescaped(v[from:to], '"'), Start: s.Start + from, End: s.Start + to,
			})
		}
		at = next
	}
	return list
}
