package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// fullLeaf has every field set.
func fullLeaf() *Leaf {
	at := time.Date(2026, 3, 4, 5, 6, 7, 891_011_000, time.UTC)
	day := at.Truncate(time.Second)
	r := someRecord(4211)
	r.Reason = "no entry matches"
	r.SVID = &SVID{Kind: "jwt", ID: "9f", SHA256: "aa", KeyID: "bb", Audience: []string{"db", "api"}, CommonName: "reader", DNSNames: []string{"db.example.org"}, NotBefore: day, NotAfter: day.Add(time.Hour), Signing: "88", Offline: true}
	r.Key = &Key{KeyID: "bb", Certificate: []byte{1}, PublicKey: []byte{2, 3}, NotBefore: day, NotAfter: day.Add(time.Hour), Quote: []byte{4, 5, 6}}
	r.Node = &Node{EKSHA256: "cc", AKName: "000bdd", PCRSHA256: "ee", EvidenceSHA256: "ff", Resets: 17, Statement: []byte("statement")}
	r.Config = &Config{SHA256: "11", Entries: 12, Version: "0.1.0"}
	r.Credential = &Credential{Handle: "role_1", Revocation: "hard", Exposure: "memory", Lease: "22", Name: "warehouse", Kind: "vault", Upstream: "vault.example.org", ScopeAsked: "rw", ScopeGranted: "r",
		Audience: []string{"db"}, NotBefore: day, NotAfter: day.Add(time.Minute), TTL: time.Minute}
	r.Use = &Use{First: at, Last: at.Add(time.Second), Count: 3, WithinTTL: true, Source: "proxy"}
	r.Call = &Call{Door: "unix", Processes: "/usr/bin/git (7), /usr/bin/sh (8)", Authority: "aa", Method: "GET", Path: "/v1/models/**", Rule: "models", Unenforced: true, Count: 2, Status: 200, Sent: 3, Received: 4, Redacted: 5, Shapes: "github-token,jwt", Rows: 6, Statements: "SELECT=2,refused=1", WithinTTL: true}
	r.Federation = &Federation{TrustDomain: "partner.example", Source: "https://partner.example/bundle", Profile: "https_spiffe", Sequence: 1<<64 - 1, SHA256: "dd", Roots: 2, Keys: 3}
	r.SPIRE = &SPIRE{Server: "spire.example.org:8081", ServerSerial: "0a", Agent: "spiffe://example.org/spire/agent/x", Attestor: "x509pop", EvidenceSHA256: "44", SHA256: "55", NotAfter: day, TrustDomain: "example.org", Sequence: 7, Authorities: []string{"66", "77"}, Tainted: []string{"66"},
		Entries: 3, Added: []string{"e1"}, Removed: []string{"e2"}, Changed: []string{"e3"}, Signing: "88", Entry: "e1", Revision: 9, SPKISHA256: "99", LastSync: day, Until: day}
	r.Event = EventSegment
	return &Leaf{Version: LeafVersion, Index: 99, Time: at, Mono: 86400 * time.Second, BootID: "2f0e8e47-7f62-4d0c-9a6e-6a3f5a0e6f0b", Record: r,
		Log: &LogEvent{Key: "k", Last: 4, Size: 5, Root: "r", Anchor: []byte{7}, Cut: 8, CutSHA256: "33", Refused: 9}}
}

func mustEncode(t testing.TB, l *Leaf) []byte {
	t.Helper()
	raw, err := AppendLeaf(nil, l)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// canonical is RFC 8785 by another way: decoded and encoded by encoding/json,
// which sorts keys. Its escapes of <, > and & are undone, and the leaf has only
// integers.
func canonical(t testing.TB, raw []byte) []byte {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func TestLeafIsCanonicalJSON(t *testing.T) {
	t.Parallel()
	raw := mustEncode(t, fullLeaf())
	if want := canonical(t, raw); !bytes.Equal(raw, want) {
		t.Errorf("leaf\n%s\nwant\n%s", raw, want)
	}
}

func TestLeafReadsBackAsWritten(t *testing.T) {
	t.Parallel()
	want := fullLeaf()
	raw := mustEncode(t, want)
	got, err := DecodeLeaf(raw)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(want)
	b, _ := json.Marshal(got)
	if !bytes.Equal(a, b) {
		t.Errorf("got\n%s\nwant\n%s", b, a)
	}
	if again := mustEncode(t, &got); !bytes.Equal(again, raw) {
		t.Errorf("written again\n%s\nat first\n%s", again, raw)
	}
}

// hostile texts, which must neither break a line nor reach a terminal.
var hostile = []string{
	"line\nbreak", "carriage\rreturn", "\x1b]0;owned\x07", "\x1b[2J", "nul\x00byte", "tab\t", `back\slash`, `quo"te`, "del\x7f",
	"\u009bcsi", "bidi\u202eoverride", "zero\u200bwidth", "\u2028line", "\xff\xfeinvalid", "half\xe2\x82", "\U000e0001tag", "é and 漢字", "\ufeffbom",
	`","outcome":"success`, `\u0041`, `\[+3 bytes]`, strings.Repeat("a", 5000), strings.Repeat("\xff", 5000), strings.Repeat("\U000e0001", 5000), strings.Repeat(`"`, 5000),
}

func TestHostileTextIsEscapedInEveryField(t *testing.T) {
	t.Parallel()
	for _, s := range hostile {
		l := fullLeaf()
		r := &l.Record
		for _, p := range []*string{
			&r.RequestID, &r.SPIFFEID, &r.Reason, &l.BootID,
			&r.Workload.Path, &r.Workload.SHA256, &r.Workload.Cgroup, &r.Workload.Unit, &r.Workload.Entry, &r.Workload.Selectors[0],
			&r.SVID.Kind, &r.SVID.ID, &r.SVID.SHA256, &r.SVID.KeyID, &r.SVID.Audience[1], &r.Key.KeyID,
			&r.Node.EKSHA256, &r.Node.AKName, &r.Node.PCRSHA256, &r.Node.EvidenceSHA256, &r.Config.SHA256, &r.Config.Version,
			&r.Credential.Lease, &r.Credential.Handle, &r.Credential.Revocation, &r.Credential.Exposure, &r.Credential.Name, &r.Credential.Kind, &r.Credential.Upstream, &r.Credential.ScopeAsked, &r.Credential.ScopeGranted, &r.Credential.Audience[0],
			&r.Federation.TrustDomain, &r.Federation.Source, &r.Federation.Profile, &r.Federation.SHA256,
			&r.SPIRE.Server, &r.SPIRE.ServerSerial, &r.SPIRE.Agent, &r.SPIRE.Attestor, &r.SPIRE.EvidenceSHA256, &r.SPIRE.SHA256, &r.SPIRE.TrustDomain, &r.SPIRE.Authorities[0], &r.SPIRE.Tainted[0],
			&r.SPIRE.Added[0], &r.SPIRE.Removed[0], &r.SPIRE.Changed[0], &r.SPIRE.Signing, &r.SPIRE.Entry, &r.SPIRE.SPKISHA256, &r.SVID.Signing,
			&r.Use.Source, &l.Log.Key, &l.Log.Root, &l.Log.CutSHA256,
		} {
			before := *p
			*p = s
			raw, err := AppendLeaf(nil, l)
			if err != nil {
				t.Fatalf("%.20q: %v", s, err)
			}
			checkSafe(t, raw)
			if _, err := DecodeLeaf(raw); err != nil {
				t.Errorf("%.20q: %v", s, err)
			}
			*p = before
		}
	}
}

// checkSafe fails unless the leaf is one printable line of canonical JSON.
func checkSafe(t *testing.T, raw []byte) {
	t.Helper()
	if !utf8.Valid(raw) {
		t.Errorf("not UTF-8: %q", raw)
	}
	for _, r := range string(raw) {
		if !unicode.IsPrint(r) {
			t.Errorf("%U in %s", r, raw)
			return
		}
	}
	if want := canonical(t, raw); !bytes.Equal(raw, want) {
		t.Errorf("leaf\n%s\nwant\n%s", raw, want)
	}
}

func TestRecordOfLongTextsAlwaysFits(t *testing.T) {
	t.Parallel()
	for _, s := range hostile {
		long := strings.Repeat(s, 20_000/len(s)+1)
		r := someRecord(1)
		r.RequestID, r.SPIFFEID, r.Reason = long, long, long
		w := r.Workload
		w.Path, w.SHA256, w.Cgroup, w.Unit, w.Entry = long, long, long, long, long
		w.Selectors = slices.Repeat([]string{long}, 100)
		r.SVID = &SVID{Kind: long, ID: long, SHA256: long, KeyID: long, CommonName: long, Audience: w.Selectors, DNSNames: w.Selectors}
		l := &Leaf{Version: LeafVersion, Time: time.Unix(1, 0), BootID: "b", Record: r}
		raw := mustEncode(t, l)
		checkSafe(t, raw)
		got, err := DecodeLeaf(raw)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(got.Workload.Path, " bytes]") || !strings.Contains(got.Workload.Path, `\[+`) {
			t.Errorf("a long path is cut without a mark: …%s", got.Workload.Path[len(got.Workload.Path)-20:])
		}
		if last := got.Workload.Selectors[len(got.Workload.Selectors)-1]; !strings.HasPrefix(last, `\[+`) || !strings.HasSuffix(last, " more]") {
			t.Errorf("selectors are left out without a mark: %s", last)
		}
	}
}

func TestEscapeIsHowTextStandsInTheLog(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, s := range hostile {
		if len(s) > 1000 {
			continue
		}
		l := &Leaf{Version: LeafVersion, Time: time.Unix(1, 0), BootID: "b", Record: someRecord(1)}
		l.Workload.Path = s
		got, err := DecodeLeaf(mustEncode(t, l))
		if err != nil {
			t.Fatal(err)
		}
		if got.Workload.Path != Escape(s) {
			t.Errorf("in the log %s, Escape says %s", got.Workload.Path, Escape(s))
		}
		if other, ok := seen[Escape(s)]; ok {
			t.Errorf("%q and %q read the same", s, other)
		}
		seen[Escape(s)] = s
	}
}

func TestRecordThatCannotStandInTheLogIsRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*Leaf)
		want   string
	}{
		{"unknown event", func(l *Leaf) { l.Event = "x" }, `unknown event "x"`},
		{"hostile event", func(l *Leaf) { l.Event = "a\nb" }, `unknown event "a\x0ab"`},
		{"no event", func(l *Leaf) { l.Event = "" }, "event is missing"},
		{"no outcome", func(l *Leaf) { l.Outcome = "" }, "outcome is missing"},
		{"unknown outcome", func(l *Leaf) { l.Outcome = "maybe" }, "unknown outcome"},
		{"start time over 2^53", func(l *Leaf) { l.Workload.StartTime = 1 << 53 }, "start_time is 9007199254740992"},
		{"year 12026", func(l *Leaf) { l.Time = l.Time.AddDate(10_000, 0, 0) }, "time is in the year 12026"},
		{"a statement too long to repeat", func(l *Leaf) { l.Node.Statement = make([]byte, MaxStatement+1) }, "statement has 10241 bytes"},
		{"a certificate longer than a leaf", func(l *Leaf) { l.Key.Certificate = make([]byte, MaxLeaf) }, "certificate of 16384 bytes does not fit"},
		{"binary data too long together", func(l *Leaf) { l.Key.Certificate = make([]byte, 8000); l.Key.Quote = make([]byte, 8000) }, "leaf has "},
		{"the log's fields in another record", func(l *Leaf) { l.Event = EventStart }, "brings the log's own fields"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := fullLeaf()
			tt.change(l)
			_, err := AppendLeaf(nil, l)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestLeafInAnyOtherFormIsRefused(t *testing.T) {
	t.Parallel()
	raw := string(mustEncode(t, fullLeaf()))
	for _, tt := range []struct{ name, old, new string }{
		{"white space", `,"v":1`, `, "v":1`},
		{"trailing bytes", `"}}`, `"}} `},
		{"an unknown field", `"v":1`, `"u":0,"v":1`},
		{"a field twice", `"v":1`, `"v":1,"v":1`},
		{"fields out of order", `"kind":"jwt","not_after":"2026-03-04T06:06:07Z"`, `"not_after":"2026-03-04T06:06:07Z","kind":"jwt"`},
		{"a field missing", `"seq":99,`, ``},
		{"an empty text", `"reason":"no entry matches"`, `"reason":""`},
		{"a number with a leading zero", `"seq":99`, `"seq":099`},
		{"a number with an exponent", `"seq":99`, `"seq":9e1`},
		{"a number over 2^53", `"seq":99`, `"seq":9007199254740992`},
		{"a negative number", `"seq":99`, `"seq":-1`},
		{"a zero that is left out otherwise", `"count":3`, `"count":0`},
		{"a needless escape", `"proxy"`, `"\u0070roxy"`},
		{"a solidus escaped", `/usr/bin/research-agent`, `\/usr/bin/research-agent`},
		{"a raw line break", `no entry matches`, "no entry\nmatches"},
		{"a raw bidirectional mark", `no entry matches`, "no entry\u202ematches"},
		{"bytes that are not UTF-8", `no entry matches`, "no entry\xffmatches"},
		{"another version", `"v":1`, `"v":2`},
		{"another layout of time", `"2026-03-04T05:06:07.891011Z"`, `"2026-03-04T05:06:07,891011Z"`},
		{"a time zone", `"2026-03-04T05:06:07.891011Z"`, `"2026-03-04T05:06:07.891011+00:00"`},
		{"base64 with loose bits", `"certificate":"AQ=="`, `"certificate":"AR=="`},
		{"false written out", `"within_ttl":true`, `"within_ttl":false`},
		{"a user ID over 32 bits", `"uid":1000`, `"uid":4294967296`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			changed := strings.Replace(raw, tt.old, tt.new, 1)
			if changed == raw {
				t.Fatalf("%s is not in %s", tt.old, raw)
			}
			if _, err := DecodeLeaf([]byte(changed)); err == nil {
				t.Errorf("accepted %s", tt.new)
			}
		})
	}
	for i := range raw {
		if _, err := DecodeLeaf([]byte(raw[:i])); err == nil {
			t.Fatalf("accepted the first %d bytes", i)
		}
	}
}

func FuzzDecodeLeaf(f *testing.F) {
	raw, err := AppendLeaf(nil, fullLeaf())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	for i, s := range hostile {
		l := &Leaf{Version: LeafVersion, Time: time.Unix(int64(i), 0), BootID: fmt.Sprint(i), Record: someRecord(i)}
		l.Reason = s
		raw, err := AppendLeaf(nil, l)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := DecodeLeaf(raw); err != nil {
			return
		}
		// Whatever is accepted is safe to print and in the one canonical form.
		if !utf8.Valid(raw) {
			t.Errorf("not UTF-8: %q", raw)
		}
		if want := canonical(t, raw); !bytes.Equal(raw, want) {
			t.Errorf("accepted %s, whose canonical form is %s", raw, want)
		}
	})
}

// A record can hold only what this package names: nothing that takes whatever it
// is given, so no secret can slip in under a key of its own.
func TestRecordHasNoFreeFormField(t *testing.T) {
	t.Parallel()
	var check func(name string, typ reflect.Type)
	check = func(name string, typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Map, reflect.Interface, reflect.Func, reflect.Chan, reflect.UnsafePointer:
			t.Errorf("%s is a %s", name, typ)
		case reflect.Pointer, reflect.Slice, reflect.Array:
			check(name, typ.Elem())
		case reflect.Struct:
			if typ == reflect.TypeFor[time.Time]() {
				return
			}
			for f := range typ.Fields() {
				check(name+"."+f.Name, f.Type)
			}
		}
	}
	check("Leaf", reflect.TypeFor[Leaf]())
}

// someRecord is a record with an attested workload.
func someRecord(pid int) Record {
	return Record{
		Event: EventWorkload, Outcome: Success, RequestID: fmt.Sprintf("r-%d", pid),
		SPIFFEID: "spiffe://example.org/agent/research", Duration: 420 * time.Microsecond,
		Workload: &Workload{
			PID: pid, StartTime: 12345, UID: 1000, GID: 1000, Path: "/usr/bin/research-agent",
			SHA256: "5f2c9fd1d95bd9a3b1f4a3b0fbe42a1d3b7e9d5b0b3b5d2a6a4f1c0e9d8c7b6a", Device: 65024, Inode: 271828,
			Cgroup: "/system.slice/research-agent.service", Unit: "research-agent.service",
			Selectors: []string{"unix:uid:1000", "unix:gid:1000", "systemd:id:research-agent.service", "unix:path:/usr/bin/research-agent"},
			Entry:     "entries.d/research.yaml:2",
		},
	}
}
