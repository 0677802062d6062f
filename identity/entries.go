package identity

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/config"
)

// maxEntries bounds the registration entries of one host.
const maxEntries = 100_000

// Limits is what entries must satisfy besides being well formed.
type Limits struct {
	// MaxX509TTL is the longest lifetime an X509-SVID may have, at least a minute. It
	// keeps X509-SVIDs from outliving the issuing CA that signs them.
	MaxX509TTL time.Duration
	// JWTAlgorithms are those that the authority signs with; empty: any.
	JWTAlgorithms []string
	// AnyOwner accepts files that other users may write to, for checking a
	// working copy. The daemon never sets it.
	AnyOwner bool
	// AnyTrustDomain takes the trust domain of the first entry for that of
	// all, for checking entries without the configuration they are for. The
	// daemon never sets it.
	AnyTrustDomain bool
	// LeaveOutUnanchored has entries without an anchor left out, and the others
	// loaded, where otherwise nothing is. The daemon sets it: an entry that an
	// earlier version took must not take everybody's identity with it.
	LeaveOutUnanchored bool
}

// Entries is every registration entry of the host. It does not change once
// loaded, and is safe for concurrent use. The zero value has no entries, and
// so matches nothing.
type Entries struct {
	list   []Entry // in the order of files and lines
	out    config.Errors
	digest [32]byte

	// Selectors are numbered, so that matching compares numbers. An entry is in
	// byRarest under the selector of its own that the fewest entries want: a common
	// one (a user that all agents share) then does not lead to every entry.
	number   map[attest.Selector]uint32
	wants    [][]uint32         // of each entry, its selectors' numbers
	byRarest map[uint32][]int32 // positions in list, ascending

	stages [attest.Read + 1]stageIndex
}

// A stageIndex finds the entries that a process may still match once its facts
// up to a stage are known. Entries that ask for the same facts up to there are
// one set in it.
type stageIndex struct {
	sets     []stageSet
	byRarest map[uint32][]int32 // positions in sets
	always   attest.KindSet     // of the entries that ask for nothing up to the stage
}

type stageSet struct {
	want  []uint32       // numbers of selectors up to the stage
	kinds attest.KindSet // that its entries want, of every stage
}

// LoadEntries reads the *.yaml files of dir in the order of their names. A missing
// directory has no entries. An error about them is of type [config.Errors] and lists
// every problem found; nothing is loaded then.
func LoadEntries(dir string, td spiffeid.TrustDomain, limits Limits) (*Entries, error) {
	files, err := config.ReadDir(dir, limits.AnyOwner)
	var problems config.Errors
	problems.AddErr(dir, err)
	return parseEntries(files, problems, td, limits)
}

// ParseEntries is [LoadEntries] of files that were read.
func ParseEntries(files []config.File, td spiffeid.TrustDomain, limits Limits) (*Entries, error) {
	return parseEntries(files, nil, td, limits)
}

func parseEntries(files []config.File, problems config.Errors, td spiffeid.TrustDomain, limits Limits) (*Entries, error) {
	if limits.MaxX509TTL < time.Minute {
		return nil, fmt.Errorf("loading entries: X509-SVIDs may live %v, and need a minute at least; raise authority.rotation_overlap", limits.MaxX509TTL)
	}
	c := checker{td: td, limits: limits, problems: problems}
	var list []Entry
	for _, f := range files {
		var doc document
		// Whatever could be decoded is checked nonetheless: one run reports every
		// problem.
		c.problems.AddErr(f.Path, config.Decode(f.Path, f.Data, &doc))
		for i := range doc.Entries {
			if w := &doc.Entries[i]; w.Pos.Line > 0 {
				if e := c.entry(w); !e.Unanchored || w.AllowUnanchored || !limits.LeaveOutUnanchored {
					list = append(list, e)
				}
			}
		}
		if len(list) > maxEntries {
			c.problems.Add(config.Pos{File: f.Path}, "with this file there are more than %d entries; remove some", maxEntries)
			break
		}
	}
	c.among(list)
	if err := c.problems.Err(); err != nil {
		return nil, err
	}
	es := &Entries{list: list, out: c.out, digest: digest(files)}
	es.index()
	return es, nil
}

// NewEntries returns entries that are from elsewhere than files. The digest tells them from
// others. The list is the callee's from then on.
func NewEntries(list []Entry, digest [32]byte) *Entries {
	es := &Entries{list: list, digest: digest}
	es.index()
	return es
}

// LeftOut returns why entries were left out, by [Limits.LeaveOutUnanchored].
func (es *Entries) LeftOut() config.Errors { return es.out }

// digest covers names and contents, each with its length before it.
func digest(files []config.File) [32]byte {
	h := sha256.New()
	for _, f := range files {
		for _, part := range [][]byte{[]byte(filepath.Base(f.Path)), f.Data} {
			var n [8]byte
			binary.BigEndian.PutUint64(n[:], uint64(len(part)))
			h.Write(n[:])
			h.Write(part)
		}
	}
	return [32]byte(h.Sum(nil))
}

func (es *Entries) index() {
	es.number = make(map[attest.Selector]uint32)
	es.wants = make([][]uint32, len(es.list))
	var wanted []int // by number: how many entries want it
	for i, e := range es.list {
		for _, s := range e.Selectors {
			n, ok := es.number[s]
			if !ok {
				n = uint32(len(wanted))
				es.number[s] = n
				wanted = append(wanted, 0)
			}
			wanted[n]++
			es.wants[i] = append(es.wants[i], n)
		}
	}
	es.byRarest = make(map[uint32][]int32)
	for i, want := range es.wants {
		rarest := rarestOf(want, wanted)
		es.byRarest[rarest] = append(es.byRarest[rarest], int32(i))
	}
	for stage := range es.stages {
		es.indexStage(attest.Stage(stage), wanted)
	}
}

func rarestOf(want []uint32, wanted []int) uint32 {
	return slices.MinFunc(want, func(a, b uint32) int { return cmp.Compare(wanted[a], wanted[b]) })
}

func (es *Entries) indexStage(upTo attest.Stage, wanted []int) {
	index := stageIndex{byRarest: make(map[uint32][]int32)}
	known := make(map[string]int) // sets by their numbers
	for i, e := range es.list {
		var want []uint32
		var kinds attest.KindSet
		for j, s := range e.Selectors {
			kinds |= s.KindSet()
			if s.Stage() <= upTo && !ofNode(s) { // the machine's are known elsewhere
				want = append(want, es.wants[i][j])
			}
		}
		if len(want) == 0 {
			index.always |= kinds
			continue
		}
		key := fmt.Sprint(slices.Sorted(slices.Values(want)))
		at, ok := known[key]
		if !ok {
			at = len(index.sets)
			known[key] = at
			index.sets = append(index.sets, stageSet{want: want})
			rarest := rarestOf(want, wanted)
			index.byRarest[rarest] = append(index.byRarest[rarest], int32(at))
		}
		index.sets[at].kinds |= kinds
	}
	es.stages[upTo] = index
}

// Match returns the entries whose selectors are all among those of a process,
// in the order of files and lines: the first is the default identity
// (Workload API §8). A process with no selectors matches nothing. One of a
// container matches only entries that mean containers: root or a user number
// inside of one is not the host's.
func (es *Entries) Match(have attest.Selectors) []Entry {
	numbers := es.numbers(have)
	contained := inContainer(have)
	var at []int32
	for n := range numbers {
		for _, i := range es.byRarest[n] {
			if covers(numbers, es.wants[i]) && (!contained || es.list[i].Container()) {
				at = append(at, i)
			}
		}
	}
	slices.Sort(at)
	matched := make([]Entry, len(at))
	for i, j := range at {
		matched[i] = es.list[j]
	}
	return matched
}

// numbers returns those selectors that any entry wants.
func (es *Entries) numbers(have attest.Selectors) map[uint32]bool {
	numbers := make(map[uint32]bool)
	for _, s := range have {
		if n, ok := es.number[s]; ok {
			numbers[n] = true
		}
	}
	return numbers
}

func covers(have map[uint32]bool, want []uint32) bool {
	for _, n := range want {
		if !have[n] {
			return false
		}
	}
	return true
}

// inContainer reports whether the facts are of a process of a container:
// attestation states something of container:* for each of them.
func inContainer(have attest.Selectors) bool {
	return slices.ContainsFunc(have, func(s attest.Selector) bool { return s.Type == "container" })
}

// Wants returns the kinds of selectors that are wanted by the entries which a
// process may still match whose facts up to the stage are these. It is empty
// exactly if the process can match no entry, whatever else is found out.
func (es *Entries) Wants(have attest.Selectors, upTo attest.Stage) attest.KindSet {
	index := &es.stages[upTo]
	numbers := es.numbers(have)
	contained := inContainer(have)
	var kinds attest.KindSet
	if !contained {
		kinds = index.always
	}
	for n := range numbers {
		for _, i := range index.byRarest[n] {
			set := &index.sets[i]
			if covers(numbers, set.want) && (!contained || set.kinds.Has(containerKinds)) {
				kinds |= set.kinds
			}
		}
	}
	return kinds
}

var containerKinds = attest.KindsOf("container:")

// All returns every entry in the order of files and lines.
func (es *Entries) All() []Entry { return slices.Clone(es.list) }

// Len returns the number of entries.
func (es *Entries) Len() int { return len(es.list) }

// Digest returns a SHA-256 over the names and contents of the files, for the
// record of what was loaded. Where the directory stands does not enter.
func (es *Entries) Digest() [32]byte { return es.digest }

// A NearMiss is an entry that a process does not match, and why.
type NearMiss struct {
	Entry   Entry
	Missing attest.Selectors // those of the entry's that the process lacks; at least one, unless Host
	Host    bool             // the process is in a container, and the entry does not mean containers
}

// NearMisses returns at most a number of entries that the process does not
// match, those that lack the fewest selectors first and of these the ones that
// have the most. It looks at every entry: it explains, and is not on the way of
// a request.
func (es *Entries) NearMisses(have attest.Selectors, most int) []NearMiss {
	numbers := es.numbers(have)
	contained := inContainer(have)
	type miss struct {
		at, missing, held int
		host              bool
	}
	var misses []miss
	for i, want := range es.wants {
		m := miss{at: i, host: contained && !es.list[i].Container()}
		for _, n := range want {
			if numbers[n] {
				m.held++
			} else {
				m.missing++
			}
		}
		if m.missing > 0 || m.host {
			misses = append(misses, m)
		}
	}
	slices.SortFunc(misses, func(a, b miss) int {
		return cmp.Or(cmp.Compare(a.missing, b.missing), cmp.Compare(b.held, a.held), cmp.Compare(a.at, b.at))
	})
	var out []NearMiss
	for _, m := range misses[:max(0, min(most, len(misses)))] {
		e := es.list[m.at]
		out = append(out, NearMiss{e, have.Missing(e.Selectors), m.host})
	}
	return out
}
