package config

import (
	"cmp"
	"slices"
)

// keyOf returns the key that a name, or an earlier name, is of, or nil.
func keyOf(name string, keys []Key) *Key {
	i := slices.IndexFunc(keys, func(k Key) bool { return k.Name == name || k.Was != "" && k.Was == name })
	if i < 0 {
		return nil
	}
	return &keys[i]
}

// nearest returns the name of the key that takes the fewest edits to get to.
func nearest(name string, keys []Key) string {
	return slices.MinFunc(keys, func(a, b Key) int {
		return cmp.Compare(edits(clip(name), a.Name), edits(clip(name), b.Name))
	}).Name
}

// edits counts the insertions, deletions and substitutions that turn a into b
// (Levenshtein's distance), byte by byte.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := corner
			if a[i] != b[j] {
				cost++
			}
			corner = row[j+1]
			row[j+1] = min(cost, row[j]+1, corner+1)
		}
	}
	return row[len(b)]
}
