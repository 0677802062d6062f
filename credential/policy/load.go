package policy

import (
	"embed"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vouchd/vouchd/config"
)

// written is a proxy block, or a preset, as a file has it.
type written struct {
	Preset  config.At[string] `yaml:"preset" like:"openai-2026-11"`
	Variant config.At[string] `yaml:"variant" like:"read-only"`

	Upstream config.At[string]   `yaml:"upstream" like:"https://api.example.com/v1"`
	Hosts    []config.At[string] `yaml:"hosts" like:"api.example.com"`
	Slot     writtenSlot         `yaml:"slot"`
	Others   []writtenSlot       `yaml:"others"`
	Free     []string            `yaml:"free" like:"X-Auth-Token"`

	Rules   []writtenRule   `yaml:"rules"`
	Enforce config.At[bool] `yaml:"enforce" default:"true"`
	Who     string          `yaml:"who" default:"tree" oneof:"tree main"`

	Record    string          `yaml:"record" default:"each" oneof:"each window"`
	Cookies   string          `yaml:"cookies" default:"strip" oneof:"strip keep"`
	Slashes   config.At[bool] `yaml:"encoded_slashes" default:"false"`
	WebSocket config.At[bool] `yaml:"websocket" default:"false"`
	Through   config.At[bool] `yaml:"passthrough" default:"false"`
	Redact    writtenRedact   `yaml:"redact"`

	Environment []writtenVariable `yaml:"environment"`
	Prefix      string            `yaml:"handle_prefix" like:"sk-"`

	CAFile    config.At[string]   `yaml:"ca_file" like:"/etc/vouchd/upstream-ca.pem"`
	Addresses []config.At[string] `yaml:"allow_addresses" like:"10.1.0.0/16"`
	Timeouts  writtenTimeouts     `yaml:"timeouts"`

	Pos config.Pos
}

type writtenSlot struct {
	Header string       `yaml:"header" like:"Authorization"`
	Form   string       `yaml:"form" like:"Bearer {{value}}"`
	Basic  string       `yaml:"basic" like:"x-access-token"`
	Query  string       `yaml:"query" like:"key"`
	SigV4  writtenSigV4 `yaml:"sigv4"`

	Pos config.Pos
}

type writtenSigV4 struct {
	Region  string `yaml:"region" like:"eu-central-1"`
	Service string `yaml:"service" like:"s3"`
	Key     string `yaml:"access_key_id" like:"AKIAIOSFODNN7EXAMPLE"`
}

type writtenRule struct {
	Name    string             `yaml:"name" required:"true" like:"models"`
	Effect  string             `yaml:"effect" required:"true" oneof:"allow deny"`
	Methods []string           `yaml:"methods" like:"GET"`
	Paths   []string           `yaml:"paths" like:"/v1/models/**"`
	Query   []writtenCondition `yaml:"query"`
	Types   []string           `yaml:"content_types" like:"application/json"`
	MaxSize int                `yaml:"max_bytes" min:"1"`
	JSON    []writtenCondition `yaml:"json"`

	Pos config.Pos
}

type writtenCondition struct {
	At      string         `yaml:"at" required:"true" like:"/model"`
	OneOf   []string       `yaml:"one_of" like:"gpt-5-mini"`
	Matches string         `yaml:"matches" like:"gpt-5-.*"`
	Max     config.At[int] `yaml:"max"`
	Absent  bool           `yaml:"absent" default:"false"`

	Pos config.Pos
}

type writtenRedact struct {
	Echo   string `yaml:"echo" default:"redact" oneof:"redact block"`
	Shapes string `yaml:"shapes" default:"mark" oneof:"mark redact block off"`
}

type writtenVariable struct {
	Name  string `yaml:"name" required:"true" like:"OPENAI_BASE_URL"`
	Value string `yaml:"value" required:"true" like:"{{url}}/v1"`

	Pos config.Pos
}

type writtenTimeouts struct {
	Connect time.Duration `yaml:"connect" min:"100ms" max:"2m"`
	Header  time.Duration `yaml:"header" min:"1s" max:"1h"`
	Idle    time.Duration `yaml:"idle" min:"1s" max:"24h"`
}

// A presetFile is one file of presets: what its variants share, and their rules.
type presetFile struct {
	Source   string           `yaml:"source" required:"true"` // the vendor's document, and when it was read
	Block    config.Section   `yaml:"proxy"`
	Variants []writtenVariant `yaml:"variants"`
}

type writtenVariant struct {
	Name  string        `yaml:"name" required:"true"` // the first is the one that counts where none is named
	Says  string        `yaml:"says" required:"true"`
	Rules []writtenRule `yaml:"rules"`

	Pos config.Pos
}

// Load reads a proxy block. Problems come as [config.Errors], in the document's
// lines. The file that it names for certificates is read.
func Load(section config.Section) (*Policy, error) {
	var w written
	if err := section.Decode(&w); err != nil {
		return nil, err
	}
	var problems config.Errors
	if w.Preset.Value != "" {
		if err := w.fill(); err != nil {
			problems.Add(w.Preset.Pos, "%v", err)
			return nil, problems.Err()
		}
	} else if w.Variant.Value != "" {
		problems.Add(w.Variant.Pos, "variant is of a preset, and there is none; name one, or remove the key")
	}
	p := w.policy(&problems)
	if len(problems) == 0 {
		if err := p.Compile(); err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				problems.Add(section.Pos, "proxy: %s", line)
			}
		}
	}
	return p, problems.Err()
}

// policy makes what was written into a policy.
func (w *written) policy(problems *config.Errors) *Policy {
	p := &Policy{
		Preset: w.Preset.Value, Upstream: w.Upstream.Value, Slot: w.Slot.slot(), Free: w.Free,
		Enforce: w.Enforce.Value, MainOnly: w.Who == "main",
		Window: w.Record == "window", Cookies: w.Cookies == "keep", Slashes: w.Slashes.Value, WebSocket: w.WebSocket.Value, Passthrough: w.Through.Value,
		Echo: Echo(w.Redact.Echo), Shapes: Echo(w.Redact.Shapes), Prefix: w.Prefix,
		Connect: w.Timeouts.Connect, Header: w.Timeouts.Header, Idle: w.Timeouts.Idle,
	}
	if v := w.Variant.Value; v != "" {
		p.Preset += "/" + v
	}
	for _, h := range w.Hosts {
		p.Hosts = append(p.Hosts, h.Value)
	}
	for i := range w.Others {
		p.Others = append(p.Others, w.Others[i].slot())
	}
	for i := range w.Rules {
		p.Rules = append(p.Rules, w.Rules[i].rule())
	}
	for _, v := range w.Environment {
		p.Environment = append(p.Environment, Variable{v.Name, v.Value})
	}
	for _, a := range w.Addresses {
		prefix, err := netip.ParsePrefix(a.Value)
		if err != nil || prefix.Masked() != prefix {
			problems.Add(a.Pos, "allow_addresses: %.60q is not a network, written like 10.1.0.0/16 or 127.0.0.1/32", a.Value)
		}
		p.Addresses = append(p.Addresses, prefix)
	}
	if at := w.CAFile; at.Value != "" {
		pem, err := readCAs(at.Value)
		if err != nil {
			problems.Add(at.Pos, "ca_file: %v", err)
		}
		p.CAs = pem
	}
	return p
}

const maxCAs = 1 << 20 // bytes

func readCAs(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%s is not an absolute path", path)
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Size() > maxCAs {
		return "", fmt.Errorf("%s is not a file of at most 1 MiB", path)
	}
	pem, err := os.ReadFile(path)
	return string(pem), err
}

func (w *writtenSlot) slot() Slot {
	s := Slot{Header: w.Header, Form: w.Form, Basic: w.Basic, Query: w.Query}
	if s.Header != "" {
		s.Header = CanonicalHeader(s.Header)
	}
	if w.SigV4 != (writtenSigV4{}) {
		s.SigV4 = &SigV4{w.SigV4.Region, w.SigV4.Service, w.SigV4.Key}
	}
	return s
}

func (w *writtenRule) rule() Rule {
	r := Rule{Name: w.Name, Effect: Effect(w.Effect), Methods: w.Methods, Types: w.Types, MaxSize: int64(w.MaxSize)}
	for _, path := range w.Paths {
		r.Paths = append(r.Paths, Pattern(path))
	}
	for i := range w.Query {
		r.Query = append(r.Query, w.Query[i].condition())
	}
	for i := range w.JSON {
		r.JSON = append(r.JSON, w.JSON[i].condition())
	}
	return r
}

func (w *writtenCondition) condition() Condition {
	c := Condition{At: w.At, OneOf: w.OneOf, Matches: w.Matches, Absent: w.Absent}
	if w.Max.Pos.Line > 0 {
		most := float64(w.Max.Value)
		c.Max = &most
	}
	return c
}

//go:embed presets/*.yaml
var presetFiles embed.FS

// A Preset is one block for a vendor's API.
type Preset struct {
	Name     string // with its date, as openai-2026-11
	Source   string // the vendor's document
	Variants []Variant
}

// A Variant is a set of rules of a preset.
type Variant struct{ Name, Says string }

// Presets lists what there is, by name.
var Presets = sync.OnceValue(func() (list []Preset) {
	names, err := fs.Glob(presetFiles, "presets/*.yaml")
	if err != nil {
		panic(err) // the pattern is constant
	}
	for _, path := range names {
		name := strings.TrimSuffix(filepath.Base(path), ".yaml")
		f, _, err := readPreset(name)
		if err != nil {
			panic(fmt.Sprintf("policy: preset %s: %v", name, err)) // a test reads them all
		}
		of := Preset{Name: name, Source: f.Source}
		for _, v := range f.Variants {
			of.Variants = append(of.Variants, Variant{v.Name, v.Says})
		}
		list = append(list, of)
	}
	return list
})

// PresetOf returns the preset whose clients read their key from a variable, if one does.
func PresetOf(variable string) (name string, ok bool) {
	for _, p := range Presets() {
		_, block, err := readPreset(p.Name)
		if err != nil {
			continue // there is none such: Presets has read them
		}
		for _, v := range block.Environment {
			if v.Name == variable && strings.Contains(v.Value, "{{handle}}") {
				return p.Name, true
			}
		}
	}
	return "", false
}

func readPreset(name string) (f presetFile, block written, err error) {
	data, err := presetFiles.ReadFile("presets/" + name + ".yaml")
	if err != nil {
		return f, block, err
	}
	if err := config.Decode(name, data, &f); err != nil {
		return f, block, err
	}
	return f, block, f.Block.Decode(&block)
}

// fill puts a preset's values where the block gives none.
func (w *written) fill() error {
	name := w.Preset.Value
	if !slices.ContainsFunc(Presets(), func(p Preset) bool { return p.Name == name }) {
		var known []string
		for _, p := range Presets() {
			known = append(known, p.Name)
		}
		return fmt.Errorf("preset %.60q is not known; there are %s", name, strings.Join(known, ", "))
	}
	f, from, err := readPreset(name)
	if err != nil {
		return err
	}
	i := 0
	if v := w.Variant.Value; v != "" {
		if i = slices.IndexFunc(f.Variants, func(o writtenVariant) bool { return o.Name == v }); i < 0 {
			var known []string
			for _, v := range f.Variants {
				known = append(known, v.Name)
			}
			return fmt.Errorf("preset %s has no variant %.40q; it has %s", name, v, strings.Join(known, ", "))
		}
	} else if len(f.Variants) > 0 {
		w.Variant.Value = f.Variants[0].Name
	}
	if len(w.Rules) == 0 && len(f.Variants) > 0 {
		w.Rules = f.Variants[i].Rules
	}
	if w.Upstream.Value == "" {
		w.Upstream = from.Upstream
	}
	if len(w.Hosts) == 0 {
		w.Hosts = from.Hosts
	}
	if w.Slot.slot() == (Slot{}) {
		w.Slot = from.Slot
	}
	w.Others = append(w.Others, from.Others...)
	w.Free = append(w.Free, from.Free...)
	if len(w.Environment) == 0 {
		w.Environment = from.Environment
	}
	if w.Prefix == "" {
		w.Prefix = from.Prefix
	}
	w.Slashes.Value = w.Slashes.Value || from.Slashes.Value
	w.WebSocket.Value = w.WebSocket.Value || from.WebSocket.Value
	if w.Timeouts == (writtenTimeouts{}) {
		w.Timeouts = from.Timeouts
	}
	return nil
}
