package credential

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential/database"
	"github.com/vouchd/vouchd/credential/policy"
)

// MaxName bounds a credential's name, as entries have it, in bytes.
const MaxName = 128

const (
	maxDefinitions    = 10_000
	maxDescriptionLen = 512 // bytes
)

// A Definition is a credential that entries can grant: which broker gets it
// how, and what a lease of it may be.
type Definition struct {
	Name        string
	Description string // shown where granted credentials are listed; may be empty
	Broker      string // the kind of source
	TTL         time.Duration
	MaxTTL      time.Duration // no lease lives longer, renewed or not
	Renewable   bool
	Bind        Bind
	// JWTAlgorithm is what the JWT-SVIDs that it presents are signed with; empty: what
	// its upstream takes.
	JWTAlgorithm string
	Limits       Limits
	Parameters   []Parameter
	For          []Offer // what tools may ask it for
	Deliver      Deliver
	Proxy        *policy.Policy       // nil if nobody makes calls with it
	Database     *database.Definition // nil if nobody connects to a database with it
	Traits       Traits
	Pos          config.Pos

	broker Broker
}

// Deliver is what a holder is given of a credential.
type Deliver string

// What there is to give.
const (
	DeliverValue Deliver = "value" // its fields
	DeliverProxy Deliver = "proxy" // a handle, with which the proxy makes calls for the holder
	DeliverBoth  Deliver = "both"
)

// Definitions is every credential of the host. It does not change once loaded,
// and is safe for concurrent use. The zero value has none.
type Definitions struct {
	byName map[string]*Definition
	digest [32]byte
}

// A document is one file of credentials.d.
type document struct {
	Credentials []written `yaml:"credentials"`
}

// written is a definition as a file has it.
type written struct {
	Name        config.At[string]        `yaml:"name" required:"true" like:"warehouse-readonly"`
	Description config.At[string]        `yaml:"description"`
	Broker      config.At[string]        `yaml:"broker" required:"true"`
	TTL         config.At[time.Duration] `yaml:"ttl" default:"5m" min:"10s" max:"24h"`
	MaxTTL      config.At[time.Duration] `yaml:"max_ttl" min:"10s" max:"168h"` // left out, TTL
	Renewable   config.At[bool]          `yaml:"renewable" default:"false"`
	Bind        string                   `yaml:"bind" default:"process" oneof:"process unit lease"`
	JWT         config.At[string]        `yaml:"jwt_algorithm" oneof:"ES256 RS256"`
	Limits      writtenLimits            `yaml:"limits"`
	Parameters  []writtenParameter       `yaml:"parameters"`
	For         []writtenOffer           `yaml:"for"`
	Deliver     config.At[string]        `yaml:"deliver" oneof:"proxy value both"` // left out, by whether there is a proxy block
	Proxy       config.Section           `yaml:"proxy"`
	Database    config.Section           `yaml:"database"` // in place of proxy
	Settings    config.Sections          // of brokers, by their names

	Pos config.Pos
}

// LoadDefinitions reads the *.yaml files of dir in the order of their names,
// and opens each definition's broker. A missing directory has no definitions.
// The error reports every problem found, and is of type [config.Errors] where
// definitions are at fault; nothing is loaded then. AnyOwner accepts files that
// other users may write to, for checking a working copy.
func LoadDefinitions(dir string, brokers Brokers, anyOwner bool) (*Definitions, error) {
	files, err := config.ReadDir(dir, anyOwner)
	problems, ok := errors.AsType[config.Errors](err)
	if err != nil && !ok {
		return nil, err
	}
	return parseDefinitions(files, problems, brokers)
}

// ParseDefinitions is [LoadDefinitions] of files that were read.
func ParseDefinitions(files []config.File, brokers Brokers) (*Definitions, error) {
	return parseDefinitions(files, nil, brokers)
}

func parseDefinitions(files []config.File, problems config.Errors, brokers Brokers) (*Definitions, error) {
	l := loader{brokers: brokers, kinds: slices.Sorted(maps.Keys(brokers)), problems: problems, defs: &Definitions{byName: make(map[string]*Definition), digest: digest(files)}}
	for _, f := range files {
		var doc document
		if found, ok := errors.AsType[config.Errors](config.DecodeWith(f.Path, f.Data, &doc, l.kinds)); ok {
			l.problems = append(l.problems, found...)
		}
		for i := range doc.Credentials {
			if w := &doc.Credentials[i]; w.Pos.Line > 0 {
				l.definition(w)
			}
		}
		if len(l.defs.byName) > maxDefinitions {
			l.problems.Add(config.Pos{File: f.Path}, "with this file there are more than %d credentials; remove some", maxDefinitions)
			break
		}
	}
	if err := l.problems.Err(); err != nil {
		l.defs.Close()
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(l.defs.byName)) { // they are in files of their own
		var cas string
		switch d := l.defs.byName[name]; {
		case d.Proxy != nil:
			cas = d.Proxy.CAs
		case d.Database != nil:
			cas = d.Database.CAs
		}
		if cas != "" {
			l.defs.digest = sha256.Sum256(append(l.defs.digest[:], name+"\x00"+cas...))
		}
	}
	return l.defs, nil
}

// digest covers names and contents, each with its length before it. [LoadDefinitions]
// adds the certificates that calls trust.
func digest(files []config.File) [32]byte {
	h := sha256.New()
	for _, f := range files {
		for _, part := range [][]byte{[]byte(filepath.Base(f.Path)), f.Data} {
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
			h.Write(part)
		}
	}
	return [32]byte(h.Sum(nil))
}

type loader struct {
	brokers  Brokers
	kinds    []string // the brokers' names, sorted
	problems config.Errors
	defs     *Definitions
}

// definition checks one definition and opens its broker.
func (l *loader) definition(w *written) {
	before := len(l.problems)
	d := &Definition{
		Name:         w.Name.Value,
		Description:  w.Description.Value,
		Broker:       w.Broker.Value,
		TTL:          w.TTL.Value,
		MaxTTL:       cmp.Or(w.MaxTTL.Value, w.TTL.Value),
		Renewable:    w.Renewable.Value,
		Bind:         Bind(w.Bind),
		JWTAlgorithm: w.JWT.Value,
		Limits:       Limits{Rate: w.Limits.Rate, Concurrent: w.Limits.Concurrent},
		Pos:          w.Pos,
	}
	d.Pos.Column = 0
	l.kind(w)
	l.text(w)
	if d.TTL > d.MaxTTL {
		l.problems.Add(w.MaxTTL.Pos, "max_ttl %s is shorter than ttl %s; raise it or shorten ttl", config.FormatDuration(d.MaxTTL), config.FormatDuration(d.TTL))
	}
	if hours := w.Limits.Hours; hours.Pos.Line > 0 && len(hours.Value) == 0 {
		l.problems.Add(hours.Pos, "hours is empty, which could mean never or always; list the hours, or remove the key for always")
	}
	for _, h := range w.Limits.Hours.Value {
		d.Limits.Hours = append(d.Limits.Hours, h.Value)
	}
	l.parameters(d, w)
	l.offers(d, w)
	l.proxy(d, w)
	if len(l.problems) > before {
		return // the broker is not asked about what is wrong already
	}
	l.open(d, w)
	if len(l.problems) == before {
		l.defs.byName[d.Name] = d
	}
}

func (l *loader) kind(w *written) {
	if b := w.Broker; b.Value != "" && l.brokers[b.Value] == nil {
		l.problems.Add(b.Pos, "broker %.80q is not known; give %s", b.Value, strings.Join(l.kinds, " or "))
	}
}

var credentialName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

func (l *loader) text(w *written) {
	name := w.Name.Value
	switch first, again := l.defs.byName[name]; {
	case name == "": // a problem already
	case !credentialName.MatchString(name) || len(name) > MaxName:
		l.problems.Add(w.Name.Pos, "name %.80q is not a name; use letters, digits, dots, dashes and underscores, at most %d", name, MaxName)
	case again:
		l.problems.AddBetween(w.Name.Pos, first.Pos, "credential %s is defined at %v already; rename or remove one", name, first.Pos)
	}
	if d := w.Description; len(d.Value) > maxDescriptionLen {
		l.problems.Add(d.Pos, "description has %d bytes and may have %d; shorten it", len(d.Value), maxDescriptionLen)
	} else if strings.ContainsFunc(d.Value, unicode.IsControl) {
		l.problems.Add(d.Pos, "description holds a control character; write it in one line")
	}
}

func (l *loader) parameters(d *Definition, w *written) {
	if len(w.Parameters) > maxParameters {
		l.problems.Add(w.Parameters[maxParameters].Pos, "credential %s has %d parameters and may have %d; remove some", d.Name, len(w.Parameters), maxParameters)
		return
	}
	for i := range w.Parameters {
		p := w.Parameters[i].parameter(&l.problems)
		if slices.ContainsFunc(d.Parameters, func(q Parameter) bool { return q.Name == p.Name }) {
			l.problems.Add(w.Parameters[i].Name.Pos, "parameter %s is given again; remove one", p.Name)
		}
		d.Parameters = append(d.Parameters, p)
	}
}

// proxy reads how calls are made with the credential, and whether its value is handed
// out as well.
func (l *loader) proxy(d *Definition, w *written) {
	d.Deliver = Deliver(w.Deliver.Value)
	block := w.Proxy
	if w.Database.Given() {
		block = w.Database
	}
	if !block.Given() {
		if d.Deliver != "" && d.Deliver != DeliverValue {
			l.problems.Add(w.Deliver.Pos, "deliver is %s, but credential %s has no proxy block; add one, which says where calls go, or a database block", d.Deliver, d.Name)
		}
		d.Deliver = DeliverValue
		return
	}
	if d.Deliver == "" {
		d.Deliver = DeliverProxy
	}
	if d.Deliver == DeliverValue {
		l.problems.Add(w.Deliver.Pos, "deliver is value, but credential %s has a proxy or database block; remove one, or say both", d.Name)
	}
	for _, p := range d.Parameters {
		if p.Default == "" {
			l.problems.Add(block.Pos, "parameter %s of credential %s has no default, and calls choose none; give it one, or define a credential for each value", p.Name, d.Name)
		}
	}
	if w.Database.Given() {
		l.database(d, w)
		return
	}
	var err error
	d.Proxy, err = policy.Load(w.Proxy)
	if found, ok := errors.AsType[config.Errors](err); ok {
		l.problems = append(l.problems, found...)
	} else if err != nil {
		l.problems.Add(w.Proxy.Pos, "proxy: %v", err)
	}
}

// None is the broker of calls that need no credential: their hosts are granted, and what
// is done there is judged and recorded, as with one.
const None = "none"

// slot holds the proxy block to what there is to put into a request.
func (l *loader) slot(d *Definition, w *written) {
	p := d.Proxy
	switch {
	case p == nil && d.Traits.Nothing:
		l.problems.Add(w.Broker.Pos, "credential %s has broker none, and no proxy block to say which calls that allows; add one", d.Name)
	case p == nil:
	case d.Traits.Nothing && p.Slot != (policy.Slot{}):
		l.problems.Add(w.Proxy.Pos, "credential %s has broker none, and a slot that nothing is put into; remove the slot", d.Name)
	case !d.Traits.Nothing && p.Passthrough:
		l.problems.Add(w.Proxy.Pos, "credential %s would never be used: with passthrough, nothing is put into what passes; set broker: none", d.Name)
	case !d.Traits.Nothing && p.Slot == (policy.Slot{}):
		l.problems.Add(w.Proxy.Pos, "proxy: slot is missing, which says where the credential goes; add it, or set broker: none for calls without one")
	}
}

// open opens the broker and holds the definition to what it can do.
func (l *loader) open(d *Definition, w *written) {
	if d.Broker == "" {
		return // a problem already
	}
	for _, s := range w.Settings {
		if s.Name() != d.Broker {
			l.problems.Add(s.Pos, "credential %s has broker %s and settings for %s; remove one", d.Name, d.Broker, s.Name())
			return
		}
	}
	settings := w.Settings.Get(d.Broker)
	if !settings.Given() && d.Broker != None {
		l.problems.Add(w.Pos, "credential %s has no settings; add the key %s with those of its broker", d.Name, d.Broker)
		return
	}
	broker, err := l.brokers[d.Broker](d, settings)
	if found, ok := errors.AsType[config.Errors](err); ok {
		l.problems = append(l.problems, found...)
		return
	}
	if err != nil {
		l.problems.Add(settings.Pos, "%s: %v", d.Broker, err)
		return
	}
	d.broker, d.Traits = broker, broker.Traits()
	l.slot(d, w)
	if d.JWTAlgorithm != "" && !d.Traits.PresentsJWT {
		l.problems.Add(w.JWT.Pos, "credential %s has a jwt_algorithm, but presents no JWT-SVID; remove the key", d.Name)
	}
	if d.Traits.ProxyOnly && d.Deliver == DeliverBoth {
		l.problems.Add(w.Deliver.Pos, "deliver is both, but the value of credential %s is not handed out; remove the key, or set disclosable: true", d.Name)
	}
	if len(d.For) > 0 {
		if err := d.helps(); err != nil {
			l.problems.Add(w.For[0].Pos, "%v", err)
		}
	}
	if d.Renewable && !d.Traits.Renews {
		l.problems.Add(w.Renewable.Pos, "credential %s is renewable, which %s cannot do; remove the key, and let the caller ask for the next one", d.Name, d.Traits.Upstream)
	}
}

// Get returns a definition by its name.
func (ds *Definitions) Get(name string) (*Definition, bool) {
	if ds == nil {
		return nil, false
	}
	d, ok := ds.byName[name]
	return d, ok
}

// All returns every definition by name.
func (ds *Definitions) All() []*Definition {
	if ds == nil {
		return nil
	}
	all := make([]*Definition, 0, len(ds.byName))
	for _, d := range ds.byName {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b *Definition) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Digest returns a SHA-256 over the names and contents of the files, for the
// record of what was loaded.
func (ds *Definitions) Digest() [32]byte { return ds.digest }

// Close lets go of what the brokers hold open.
func (ds *Definitions) Close() {
	for _, d := range ds.All() {
		d.Close()
	}
}

// Source returns the definition's broker.
func (d *Definition) Source() Broker { return d.broker }

// Close lets go of the broker's connections, if it keeps any.
func (d *Definition) Close() {
	if c, ok := d.broker.(interface{ Close() }); ok {
		c.Close()
	}
}

// Lifetime returns the lifetime to ask the upstream for, given what a caller
// asks for: 0 for the definition's own.
func (d *Definition) Lifetime(asked time.Duration) (time.Duration, error) {
	switch {
	case asked == 0:
		return d.TTL, nil
	case asked < time.Second:
		return 0, fmt.Errorf("%w: %s is less than a second", ErrTTL, asked)
	case asked > d.MaxTTL:
		return 0, fmt.Errorf("%w: %s is above the %s that %s may have", ErrTTL, asked, config.FormatDuration(d.MaxTTL), d.Name)
	}
	return asked, nil
}
