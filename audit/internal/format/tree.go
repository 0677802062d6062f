package format

import (
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// A Tree is an RFC 6962 Merkle tree that can only grow. It keeps the roots of
// its complete subtrees, one a level, which is all that growing needs.
type Tree struct {
	Size int64
	edge [48]tlog.Hash // edge[i] is the last complete subtree of 2^i leaves, where size has that bit
}

// maxSize bounds a tree, so that its edge fits.
const maxSize = 1 << 47

// Add appends a leaf and returns the hashes of the subtrees that it completed,
// by level.
func (t *Tree) Add(leaf tlog.Hash) []tlog.Hash {
	if t.Size >= maxSize {
		panic("audit: the tree is full")
	}
	done, err := tlog.StoredHashesForRecordHash(t.Size, leaf, t)
	if err != nil {
		panic(err) // ReadHashes returns none
	}
	copy(t.edge[:], done)
	t.Size++
	return done
}

// Root returns the tree's hash.
func (t *Tree) Root() tlog.Hash {
	h, err := tlog.TreeHash(t.Size, t)
	if err != nil {
		panic(err) // ReadHashes returns none
	}
	return h
}

// ReadHashes implements [tlog.HashReader] for what add and root ask for: always
// the last complete subtree of a level.
func (t *Tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		level, _ := tlog.SplitStoredHashIndex(index)
		hashes[i] = t.edge[level]
	}
	return hashes, nil
}

// frontier returns the complete subtrees that make up the tree, largest first.
func (t *Tree) frontier() []tlog.Hash {
	var hashes []tlog.Hash
	for level := len(t.edge) - 1; level >= 0; level-- {
		if t.Size>>level&1 == 1 {
			hashes = append(hashes, t.edge[level])
		}
	}
	return hashes
}

// treeFrom rebuilds a tree from its frontier.
func treeFrom(size int64, frontier []tlog.Hash) (Tree, error) {
	if size < 0 || size > maxSize || len(frontier) != bits.OnesCount64(uint64(size)) {
		return Tree{}, fmt.Errorf("%d subtrees do not make a tree of %d records", len(frontier), size)
	}
	t := Tree{Size: size}
	for level := len(t.edge) - 1; level >= 0; level-- {
		if size>>level&1 == 1 {
			t.edge[level], frontier = frontier[0], frontier[1:]
		}
	}
	return t, nil
}
