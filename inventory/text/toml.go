package text

import (
	"bytes"
	"regexp"
	"strings"
)

var tomlPair = regexp.MustCompile(`([A-Za-z0-9_-]+|"[^"\n]{1,100}")[ \t]*=[ \t]*("((?:[^"\\\n]|\\.)*)"|'([^'\n]*)'|\{)`)

// TOML reads KEY = "VALUE" with one-line strings, also in inline tables, which give their
// name to what is in them.
func TOML(data []byte) (list []Entry) {
	section := ""
	for at := 0; at < len(data); {
		end := lineEnd(data, at)
		line := bytes.TrimSpace(data[at:end])
		switch {
		case len(line) == 0 || line[0] == '#':
		case line[0] == '[' && line[len(line)-1] == ']':
			section = strings.ReplaceAll(string(bytes.Trim(line, "[] ")), `"`, "")
		default:
			list = append(list, tomlLine(data, at, end, section)...)
		}
		at = end + 1
	}
	return list
}

func tomlLine(data []byte, at, end int, section string) (list []Entry) {
	for _, m := range tomlPair.FindAllSubmatchIndex(data[at:end], -1) {
		key := strings.Trim(string(data[at+m[2]:at+m[3]]), `"`)
		switch {
		case m[6] >= 0:
			list = append(list, Entry{Section: section, Key: key, Value: unescaped(data[at+m[6]:at+m[7]], '"'), Start: at + m[6], End: at + m[7]})
		case m[8] >= 0:
			list = append(list, Entry{Section: section, Key: key, Value: data[at+m[8] : at+m[9]], Start: at + m[8], End: at + m[9]})
		default:
			section = strings.TrimPrefix(section+"."+key, ".")
		}
	}
	return list
}
