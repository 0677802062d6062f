package identity

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/config"
)

var (
	td     = spiffeid.RequireTrustDomainFromString("example.org")
	limits = Limits{MaxX509TTL: 2 * time.Hour}
)

// Each file of testdata/refused is a directory of entries and, as "want", the
// whole message about it.
func TestLoadEntriesRefuses(t *testing.T) {
	t.Parallel()
	cases, err := filepath.Glob("testdata/refused/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			root := t.TempDir()
			if err := txtar.Write(archive, root); err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(filepath.Join(root, "want"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = LoadEntries(filepath.Join(root, "entries.d"), td, limits)
			got := strings.ReplaceAll(fmt.Sprintln(err), root+"/", "")
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestEntryHoldsWhatIsWrittenAndDefaultsForTheRest(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{"a.yaml": `
entries:
  - spiffe_id: spiffe://example.org/agent/research
    selectors:
      - unix:uid:1000
      - systemd:id:research.service
    x509_svid_ttl: 90m
    jwt_svid_ttl: 30s
    hint: research
    credentials: [openai, warehouse-readonly]
  - spiffe_id: spiffe://example.org/other
    selectors: [unix:uid:1001]
    federates_with: [partner.example]
`, "empty.yaml": "# nothing yet\n", "none.yaml": "entries:\n"})
	es, err := LoadEntries(dir, td, limits)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "a.yaml")
	want := []Entry{{
		ID:          spiffeid.RequireFromString("spiffe://example.org/agent/research"),
		Selectors:   selectors(t, "unix:uid:1000", "systemd:id:research.service"),
		X509TTL:     90 * time.Minute,
		JWTTTL:      30 * time.Second,
		Hint:        "research",
		Credentials: []string{"openai", "warehouse-readonly"},
		Pos:         config.Pos{File: file, Line: 3, Column: 5},
	}, {
		ID:        spiffeid.RequireFromString("spiffe://example.org/other"),
		Selectors: selectors(t, "unix:uid:1001"),
		X509TTL:   time.Hour,
		JWTTTL:    5 * time.Minute,

		FederatesWith: []spiffeid.TrustDomain{spiffeid.RequireTrustDomainFromString("partner.example")},

		Pos: config.Pos{File: file, Line: 11, Column: 5},
	}}
	if diff := cmp.Diff(want, es.All(), cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b }), cmp.Comparer(func(a, b spiffeid.TrustDomain) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestDefaultX509TTLShrinksToWhatTheIssuingCAAllows(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{"a.yaml": "entries:\n- spiffe_id: spiffe://example.org/a\n  selectors: [unix:uid:1]\n"})
	es, err := LoadEntries(dir, td, Limits{MaxX509TTL: 10 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if got := es.All()[0].X509TTL; got != 10*time.Minute {
		t.Errorf("X509TTL = %v, want 10m", got)
	}
}

func TestMissingDirectoryHasNoEntries(t *testing.T) {
	t.Parallel()
	es, err := LoadEntries(filepath.Join(t.TempDir(), "entries.d"), td, limits)
	if err != nil {
		t.Fatal(err)
	}
	if es.Len() != 0 || len(es.Match(selectors(t, "unix:uid:0"))) != 0 {
		t.Errorf("a missing directory has %d entries", es.Len())
	}
}

func TestDigestTellsFilesApartAndNotWhereTheyStand(t *testing.T) {
	t.Parallel()
	entry := "entries:\n- spiffe_id: spiffe://example.org/a\n  selectors: [unix:uid:1]\n"
	digest := func(files map[string]string) [32]byte {
		es, err := LoadEntries(write(t, files), td, limits)
		if err != nil {
			t.Fatal(err)
		}
		return es.Digest()
	}
	one := digest(map[string]string{"a.yaml": entry})
	if one != digest(map[string]string{"a.yaml": entry, "README": "not read"}) {
		t.Error("the same files in another directory have another digest")
	}
	for name, files := range map[string]map[string]string{
		"another name":    {"b.yaml": entry},
		"another comment": {"a.yaml": entry + "#"},
		"a further file":  {"a.yaml": entry, "b.yaml": ""},
		"none":            {},
	} {
		if one == digest(files) {
			t.Errorf("%s has the same digest", name)
		}
	}
}

func TestMatch(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{"b.yaml": `
entries:
  - {spiffe_id: spiffe://example.org/by-user, selectors: [unix:uid:1000]}
`, "a.yaml": `
entries:
  - {spiffe_id: spiffe://example.org/by-unit, selectors: [systemd:id:a.service, unix:uid:1000]}
  - {spiffe_id: spiffe://example.org/by-unit, selectors: [systemd:id:b.service]}
`})
	es, err := LoadEntries(dir, td, limits)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		have []string
		want []string
	}{
		{"every selector of two entries, in the order of files", []string{"unix:uid:1000", "systemd:id:a.service", "unix:gid:5"}, []string{"/by-unit", "/by-user"}},
		{"an identity by two of its entries is listed by each", []string{"unix:uid:1000", "systemd:id:a.service", "systemd:id:b.service"}, []string{"/by-unit", "/by-unit", "/by-user"}},
		{"some of an entry's selectors", []string{"systemd:id:a.service"}, nil},
		{"a value that merely begins alike", []string{"unix:uid:10000"}, nil},
		{"nothing attested", nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, e := range es.Match(selectors(t, tt.have...)) {
				got = append(got, e.ID.Path())
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("Match(%q) = %q, want %q", tt.have, got, tt.want)
			}
		})
	}
}

func TestMatchOfNoEntriesIsNothing(t *testing.T) {
	var es Entries
	if got := es.Match(selectors(t, "unix:uid:0")); len(got) != 0 {
		t.Errorf("no entries match as %v", got)
	}
}

// Match finds what asking every entry finds, and near misses are the others.
func TestMatchIsThatOfEveryEntryAskedInTurn(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		fact := rapid.Custom(func(t *rapid.T) attest.Selector {
			return attest.Selector{Type: "unix", Value: fmt.Sprintf("supplementary_gid:%d", rapid.IntRange(0, 7).Draw(t, "gid"))}
		})
		es := &Entries{}
		for i, wanted := range rapid.SliceOf(rapid.SliceOfNDistinct(fact, 1, 4, rapid.ID)).Draw(t, "entries") {
			es.list = append(es.list, Entry{Selectors: wanted, Pos: config.Pos{Line: i + 1}})
		}
		es.index()
		have := attest.Selectors(rapid.SliceOf(fact).Draw(t, "have"))

		var covered, missed []int
		for _, e := range es.list {
			if have.Covers(e.Selectors) {
				covered = append(covered, e.Pos.Line)
			} else {
				missed = append(missed, e.Pos.Line)
			}
		}
		var got []int
		for _, e := range es.Match(have) {
			got = append(got, e.Pos.Line)
		}
		if !slices.Equal(got, covered) {
			t.Fatalf("Match = entries %v, want %v", got, covered)
		}
		var near []int
		fewest := 0
		for _, m := range es.NearMisses(have, es.Len()) {
			near = append(near, m.Entry.Pos.Line)
			if len(m.Missing) < max(1, fewest) || !slices.Equal(m.Missing, have.Missing(m.Entry.Selectors)) {
				t.Fatalf("near miss %+v after one that lacks %d", m, fewest)
			}
			fewest = len(m.Missing)
		}
		if slices.Sort(near); !slices.Equal(near, missed) {
			t.Fatalf("NearMisses = entries %v, want %v", near, missed)
		}
	})
}

func TestInterpretersAreKnownByNameWhateverTheirVersion(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"python": true, "python3": true, "python3.11": true, "python3.13t": true, "python3.7dm": true, "pypy3.10": true,
		"perl5.36.0": true, "ruby3.1": true, "node": true, "nodejs": true, "node-22": true, "php8.2": true, "lua5.4": true, "tclsh8.6": true,
		"java": true, "bash": true, "sh": true, "busybox": true, "beam.smp": true, "qemu-aarch64-static": true,
		"ld-linux-x86-64.so.2": true, "ld-linux-aarch64.so.1": true, "ld-musl-x86_64.so.1": true, "ld-2.31.so": true, "ld.so": true,
		"agent": false, "noded": false, "shuttle": false, "sshd": false, "python-agent": false, "javascript-agent": false, "perlbal": false, "ld-agent": false, "": false,
	} {
		if got := interpreters.MatchString(name); got != want {
			t.Errorf("%q is an interpreter: %t, want %t", name, got, want)
		}
	}
}

func TestEntryAsksForAnAlgorithmThatTheAuthorityHas(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{"a.yaml": `
entries:
  - {spiffe_id: spiffe://example.org/a, selectors: [unix:uid:1], jwt_algorithm: RS256}
`})
	es, err := LoadEntries(dir, td, limits)
	if err != nil || es.All()[0].JWTAlgorithm != RS256 {
		t.Fatalf("%+v, %v", es, err)
	}
	only := limits
	only.JWTAlgorithms = []string{ES256}
	if _, err := LoadEntries(dir, td, only); err == nil || !strings.Contains(err.Error(), "a.yaml:3: jwt_algorithm RS256 is not among authority.jwt_algorithms in vouchd.yaml; add it there") {
		t.Errorf("LoadEntries = %v", err)
	}
}

func TestFirstDNSNameIsTheCommonNameUnlessThereIsOneOrItIsTooLong(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 60) + ".example.org"
	dir := write(t, map[string]string{"a.yaml": fmt.Sprintf(`
entries:
  - {spiffe_id: spiffe://example.org/web, selectors: [unix:uid:1], dns_names: [www.example.org, example.org, localhost, xn--bcher-kva.example]}
  - {spiffe_id: spiffe://example.org/web, selectors: [unix:uid:9], dns_names: [www.example.org, example.org, localhost, xn--bcher-kva.example]}
  - {spiffe_id: spiffe://example.org/db, selectors: [unix:uid:2], dns_names: [db.example.org], cn: Größe & Co}
  - {spiffe_id: spiffe://example.org/role, selectors: [unix:uid:3], cn: reader}
  - {spiffe_id: spiffe://example.org/role2, selectors: [unix:uid:4], cn: reader}
  - {spiffe_id: spiffe://example.org/long, selectors: [unix:uid:5], dns_names: [%s]}
  - {spiffe_id: spiffe://example.org/wild, selectors: [unix:uid:6], dns_names: ["*.apps.example.org"], wildcard_dns_names: true}
  - {spiffe_id: spiffe://example.org/none, selectors: [unix:uid:7]}
`, long)})
	es, err := LoadEntries(dir, td, limits)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range es.All() {
		got = append(got, fmt.Sprintf("%s %q %q", e.ID.Path(), e.Names.Common, e.Names.DNS))
	}
	web := `/web "www.example.org" ["www.example.org" "example.org" "localhost" "xn--bcher-kva.example"]`
	want := []string{
		web, web, `/db "Größe & Co" ["db.example.org"]`, `/role "reader" []`, `/role2 "reader" []`,
		fmt.Sprintf(`/long "" [%q]`, long), `/wild "*.apps.example.org" ["*.apps.example.org"]`, `/none "" []`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestNearMissesAreBounded(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{"a.yaml": `
entries:
  - {spiffe_id: spiffe://example.org/far, selectors: [unix:uid:1, unix:gid:1]}
  - {spiffe_id: spiffe://example.org/other, selectors: [unix:uid:2]}
  - {spiffe_id: spiffe://example.org/near, selectors: [unix:uid:3, unix:gid:7]}
`})
	es, err := LoadEntries(dir, td, limits)
	if err != nil {
		t.Fatal(err)
	}
	got := es.NearMisses(selectors(t, "unix:gid:7"), 1)
	if len(got) != 1 || got[0].Entry.ID.Path() != "/near" || !slices.Equal(got[0].Missing, selectors(t, "unix:uid:3")) {
		t.Errorf("the nearest miss is %+v, want /near for lack of unix:uid:3", got)
	}
	if got := es.NearMisses(nil, 0); len(got) != 0 {
		t.Errorf("none were asked for, got %d", len(got))
	}
}

func selectors(t testing.TB, texts ...string) attest.Selectors {
	t.Helper()
	var ss attest.Selectors
	for _, text := range texts {
		s, err := attest.ParseSelector(text)
		if err != nil {
			t.Fatal(err)
		}
		ss = append(ss, s)
	}
	return ss
}

// write makes a directory of files.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Whatever a file holds, what is loaded from it keeps the promises of an Entry.
func FuzzLoadEntries(f *testing.F) {
	f.Add([]byte("entries:\n  - spiffe_id: spiffe://example.org/a\n    selectors: [unix:uid:1, unix:gid:1]\n    hint: a\n"))
	f.Add([]byte("entries:\n  - {spiffe_id: spiffe://example.org/a, selectors: [unix:path:/bin/sh], allow_interpreter: true, allow_unanchored: true, x509_svid_ttl: 90m}\n"))
	f.Add([]byte("entries:\n  - {spiffe_id: spiffe://example.org/a, selectors: [unix:uid:1], dns_names: [db.example.org, '*.example.org'], wildcard_dns_names: true, cn: reader}\n"))
	f.Add([]byte("entries: [{spiffe_id: spiffe://example.org/b, selectors: []}, {credentials: [a, a]}, 5]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		es, err := parseEntries([]config.File{{Path: "a.yaml", Data: data}}, nil, td, limits)
		if err != nil {
			if problems, ok := errors.AsType[config.Errors](err); !ok || es != nil || problems[0].File != "a.yaml" {
				t.Fatalf("entries %v with error %v", es, err)
			}
			return
		}
		for _, e := range es.All() {
			if len(e.Selectors) == 0 || !e.ID.MemberOf(td) || e.ID.Path() == "" || e.Pos.Line == 0 ||
				e.X509TTL < time.Minute || e.X509TTL > limits.MaxX509TTL || e.JWTTTL < 10*time.Second || e.JWTTTL > time.Hour || len(e.Hint) > maxHintLen {
				t.Fatalf("loaded %+v", e)
			}
			if n := e.Names; len(n.DNS) > maxDNSNames || len(strings.Join(n.DNS, "")) > maxAllDNSNames || utf8.RuneCountInString(n.Common) > maxCommonName || strings.ContainsFunc(n.Common, unicode.IsControl) {
				t.Fatalf("loaded %+v", e)
			}
			for _, name := range e.Names.DNS {
				if host, _ := strings.CutPrefix(name, "*."); strings.ToLower(name) != name || strings.ContainsAny(host, "*: /\x00") || net.ParseIP(host) != nil || len(name) > 255 {
					t.Fatalf("loaded the name %q", name)
				}
			}
			same := func(m Entry) bool { return m.Pos == e.Pos && m.ID == e.ID }
			if !slices.ContainsFunc(es.Match(e.Selectors), same) {
				t.Fatalf("%+v does not match its own selectors", e)
			}
			if slices.ContainsFunc(es.Match(e.Selectors[1:]), same) {
				t.Fatalf("%+v matches without its first selector", e)
			}
		}
	})
}

func TestWantsNamesOnlyWhatAnEntryThatMayStillMatchAsksFor(t *testing.T) {
	t.Parallel()
	sum := strings.Repeat("0123456789abcdef", 4)
	dir := write(t, map[string]string{"a.yaml": `
entries:
  - {spiffe_id: spiffe://example.org/plain, selectors: [unix:uid:1]}
  - {spiffe_id: spiffe://example.org/program, selectors: [unix:uid:1, unix:sha256:` + sum + `]}
  - {spiffe_id: spiffe://example.org/main, selectors: [unix:uid:2, systemd:main_process:true, script:sha256:` + sum + `]}
  - {spiffe_id: spiffe://example.org/contained, selectors: [container:runtime:docker, unix:uid:1, ima:sha256:` + sum + `]}
  - {spiffe_id: spiffe://example.org/pinned, selectors: [unix:uid:5, tpm:secureboot:on]}
`})
	es, err := LoadEntries(dir, td, limits)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		have []string
		upTo attest.Stage
		want []string
	}{
		{"no entry", []string{"unix:uid:9"}, attest.Seen, nil},
		{"two entries of a user", []string{"unix:uid:1"}, attest.Seen, []string{"unix:uid:", "unix:sha256:"}},
		{"an anchor that is asked for is not known yet", []string{"unix:uid:2"}, attest.Seen, []string{"unix:uid:", "systemd:main_process:", "script:sha256:"}},
		{"an anchor that was asked for and does not hold", []string{"unix:uid:2"}, attest.Asked, nil},
		{"all that was asked for holds", []string{"unix:uid:2", "systemd:main_process:true"}, attest.Asked, []string{"unix:uid:", "systemd:main_process:", "script:sha256:"}},
		{"a container with the user number of a host's entry", []string{"unix:uid:2", "container:runtime:docker"}, attest.Seen, nil},
		{"a container", []string{"unix:uid:1", "container:runtime:docker"}, attest.Seen, []string{"unix:uid:", "container:runtime:", "ima:sha256:"}},
		{"the machine's facts are known elsewhere", []string{"unix:uid:5"}, attest.Read, []string{"unix:uid:", "tpm:secureboot:"}},
		{"nothing attested", nil, attest.Seen, nil},
	} {
		if got, want := es.Wants(selectors(t, tt.have...), tt.upTo), attest.KindsOf(tt.want...); got != want {
			t.Errorf("%s: Wants = %b, want %b (%q)", tt.name, got, want, tt.want)
		}
	}
	if new(Entries).Wants(selectors(t, "unix:uid:1"), attest.Seen) != 0 {
		t.Error("no entries want something")
	}
}

// Wants leaves out nothing that an entry which may still match asks for.
func TestWantsIsThatOfEveryEntryAskedInTurn(t *testing.T) {
	t.Parallel()
	facts := selectors(t, "unix:uid:1", "unix:uid:2", "unix:gid:1", "container:runtime:docker", "ns:pid:host", "systemd:main_process:true",
		"unix:path:/a", "unix:path:/b", "script:path:/c", "tpm:secureboot:on")
	rapid.Check(t, func(t *rapid.T) {
		es := &Entries{}
		for _, wanted := range rapid.SliceOf(rapid.SliceOfNDistinct(rapid.SampledFrom(facts), 1, 4, rapid.ID)).Draw(t, "entries") {
			es.list = append(es.list, Entry{Selectors: wanted})
		}
		es.index()
		have := attest.Selectors(rapid.SliceOf(rapid.SampledFrom(facts)).Draw(t, "have"))
		for stage := attest.Seen; stage <= attest.Read; stage++ {
			var want attest.KindSet
			for _, e := range es.list {
				may := !inContainer(have) || e.Container()
				var kinds attest.KindSet
				for _, s := range e.Selectors {
					kinds |= s.KindSet()
					may = may && (s.Stage() > stage || ofNode(s) || have.Has(s))
				}
				if may {
					want |= kinds
				}
			}
			if got := es.Wants(have, stage); got != want {
				t.Fatalf("Wants at stage %d = %b, want %b", stage, got, want)
			}
		}
		if got := es.Match(append(have, facts[len(facts)-1])); len(got) > 0 && es.Wants(have, attest.Read) == 0 {
			t.Fatalf("%v match, of which Wants knows nothing", got)
		}
	})
}

func TestProcessOfAContainerMatchesOnlyEntriesThatMeanContainers(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{"a.yaml": `
entries:
  - {spiffe_id: spiffe://example.org/root, selectors: [unix:uid:0]}
  - {spiffe_id: spiffe://example.org/web, selectors: [container:runtime:docker, unix:uid:0]}
  - {spiffe_id: spiffe://example.org/private, selectors: [systemd:id:a.service, container:runtime:unknown]}
`})
	es, err := LoadEntries(dir, td, limits)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ have, want []string }{
		{[]string{"unix:uid:0"}, []string{"/root"}},
		{[]string{"unix:uid:0", "container:runtime:docker"}, []string{"/web"}},
		{[]string{"unix:uid:0", "container:id:web"}, nil},
		{[]string{"unix:uid:0", "systemd:id:a.service", "container:runtime:unknown"}, []string{"/private"}},
	} {
		var got []string
		for _, e := range es.Match(selectors(t, tt.have...)) {
			got = append(got, e.ID.Path())
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("a process of %q matches %q, want %q", tt.have, got, tt.want)
		}
	}
	var host []string
	for _, m := range es.NearMisses(selectors(t, "unix:uid:0", "container:id:web"), 9) {
		if m.Host {
			host = append(host, m.Entry.ID.Path())
		}
	}
	if !slices.Equal(host, []string{"/root"}) {
		t.Errorf("near misses for not meaning containers are %q, want /root", host)
	}
	var mean []string
	for _, e := range es.All() {
		if e.Container() {
			mean = append(mean, e.ID.Path())
		}
	}
	if !slices.Equal(mean, []string{"/web", "/private"}) {
		t.Errorf("entries that mean containers are %q", mean)
	}
}

func TestUnanchoredEntryIsTakenOnlyWhereItSaysSo(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{"a.yaml": `
entries:
  - {spiffe_id: spiffe://example.org/lab, selectors: [unix:path:/opt/agent], allow_unanchored: true}
  - {spiffe_id: spiffe://example.org/anchored, selectors: [unix:path:/opt/agent, unix:uid:7], allow_unanchored: true}
`})
	es, err := LoadEntries(dir, td, limits)
	if err != nil {
		t.Fatal(err)
	}
	if all := es.All(); !all[0].Unanchored || all[1].Unanchored {
		t.Errorf("unanchored are %t and %t, want true and false", all[0].Unanchored, all[1].Unanchored)
	}
}

// What an earlier version took, and this one does not, costs its own identity alone.
func TestEntriesWithoutAnAnchorCanBeLeftOut(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := `entries:
  - {spiffe_id: spiffe://example.org/bare, selectors: [unix:path:/opt/agent]}
  - {spiffe_id: spiffe://example.org/lab, selectors: [unix:path:/opt/lab], allow_unanchored: true}
  - {spiffe_id: spiffe://example.org/anchored, selectors: [unix:path:/opt/agent, unix:uid:7]}
`
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	limits := Limits{MaxX509TTL: time.Hour, AnyOwner: true}
	domain := spiffeid.RequireTrustDomainFromString("example.org")
	if _, err := LoadEntries(dir, domain, limits); err == nil {
		t.Error("an entry without an anchor is taken")
	}
	limits.LeaveOutUnanchored = true
	es, err := LoadEntries(dir, domain, limits)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, e := range es.All() {
		ids = append(ids, e.ID.Path())
	}
	if want := []string{"/lab", "/anchored"}; !slices.Equal(ids, want) {
		t.Errorf("in force are %q, want %q", ids, want)
	}
	if out := es.LeftOut(); len(out) != 1 || !strings.Contains(out.Error(), "a.yaml:2: entry spiffe://example.org/bare has no anchor") {
		t.Errorf("left out: %v", out)
	}
}
