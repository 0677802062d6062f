package format

import (
	"encoding/hex"
	"path"
	"strings"
)

// WitnessDir holds, for each witness, the last checkpoint that it cosigned.
const WitnessDir = "witness"

// maxName bounds the names of a log's files: the longest are of partial tiles.
const maxName = 64

// IsName tells whether a log can have a file of that name. Nothing else that lies
// in a copy is opened.
func IsName(name string) bool {
	if len(name) > maxName {
		return false
	}
	dir, base := path.Split(name)
	switch {
	case name == CheckpointName:
		return true
	case dir == WALDir+"/":
		_, ok := segmentFirst(base)
		return ok
	case dir == WitnessDir+"/":
		id, err := hex.DecodeString(base)
		return err == nil && len(id) == 8
	case strings.HasPrefix(dir, TileDir+"/"):
		_, err := ParseTilePath(name)
		return err == nil
	}
	return false
}

// IsTileDir tells whether files of tiles can lie in the directory or below it.
func IsTileDir(name string) bool {
	rest, ok := strings.CutPrefix(name, TileDir)
	if !ok || len(name) > maxName {
		return false
	}
	for i, part := range strings.Split(strings.TrimPrefix(rest, "/"), "/") {
		switch {
		case rest == "":
		case i == 0 && (part == "entries" || isDigits(part, 2)):
		case i > 0 && strings.HasPrefix(part, "x") && isDigits(part[1:], 3) && len(part) == 4:
		case i > 0 && strings.HasSuffix(part, ".p") && isDigits(part[:len(part)-2], 3):
		default:
			return false
		}
	}
	return true
}

func isDigits(s string, most int) bool {
	return s != "" && len(s) <= most && strings.Trim(s, "0123456789") == ""
}
