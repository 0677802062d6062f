// Command inventory says what programs are made of: the modules that were
// linked into them, by what the linker wrote there.
//
//	inventory sbom NAME VERSION PROGRAM...    a CycloneDX bill of materials
//	inventory licences PROGRAM...             the modules' licences
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "inventory:", err)
		os.Exit(1)
	}
}

func run(w io.Writer, args []string) error {
	switch {
	case len(args) > 3 && args[0] == "sbom":
		return sbom(w, args[1], args[2], args[3:])
	case len(args) > 1 && args[0] == "licences":
		return licences(w, args[1:])
	}
	return errors.New("want sbom NAME VERSION PROGRAMS, or licences PROGRAMS")
}

// A bill is a CycloneDX 1.6 document, as far as it is needed.
type bill struct {
	Format   string      `json:"bomFormat"`
	Spec     string      `json:"specVersion"`
	Serial   string      `json:"serialNumber"`
	Version  int         `json:"version"`
	Metadata metadata    `json:"metadata"`
	Parts    []component `json:"components"`
}

type metadata struct {
	Timestamp string    `json:"timestamp"`
	Component component `json:"component"`
}

type component struct {
	Type     string      `json:"type"`
	Ref      string      `json:"bom-ref"`
	Name     string      `json:"name"`
	Version  string      `json:"version,omitempty"`
	PURL     string      `json:"purl,omitempty"`
	Hashes   []hash      `json:"hashes,omitempty"`
	Licences []choice    `json:"licenses,omitempty"`
	Facts    []property  `json:"properties,omitempty"`
	Parts    []component `json:"components,omitempty"`
}

type (
	hash struct {
		Algorithm string `json:"alg"`
		Content   string `json:"content"`
	}
	choice struct {
		Expression string `json:"expression"`
	}
	property struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
)

// sbom writes the same bytes for the same programs: its time is that of the
// sources (SOURCE_DATE_EPOCH), its serial number their digest.
func sbom(w io.Writer, name, version string, programs []string) error {
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	whole := component{
		Type: "application", Ref: "package", Name: name, Version: version,
		Licences: []choice{{"Apache-2.0"}},
	}
	digest := sha256.New()
	for _, p := range programs {
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(data)
		digest.Write(sum[:])
		whole.Parts = append(whole.Parts, component{
			Type: "application", Ref: "program:" + filepath.Base(p), Name: filepath.Base(p), Version: version,
			Hashes: []hash{{"SHA-256", hex.EncodeToString(sum[:])}},
		})
	}
	parts, err := modules(programs)
	if err != nil {
		return err
	}
	id := digest.Sum(nil)[:16]
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // RFC 9562 §5.8
	b := bill{
		Format: "CycloneDX", Spec: "1.6", Version: 1,
		Serial:   fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:]),
		Metadata: metadata{time.Unix(epoch, 0).UTC().Format(time.RFC3339), whole},
	}
	for _, m := range parts {
		c := component{
			Type: "library", Ref: m.Path + "@" + m.Version, Name: m.Path, Version: m.Version,
			PURL: "pkg:golang/" + m.Path + "@" + m.Version,
		}
		if m.Sum != "" {
			c.Facts = []property{{"go:sum", m.Sum}}
			l, err := licenceOf(m)
			if err != nil {
				return err
			}
			c.Licences = []choice{{l.expression()}}
		}
		b.Parts = append(b.Parts, c)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(b)
}

// modules returns the modules in the programs, with Go's own library as
// "stdlib", in the order of their paths.
func modules(programs []string) ([]debug.Module, error) {
	found := make(map[string]debug.Module)
	for _, p := range programs {
		info, err := buildinfo.ReadFile(p)
		if err != nil {
			return nil, err
		}
		found["stdlib"] = debug.Module{Path: "stdlib", Version: info.GoVersion}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			found[m.Path] = *m
		}
	}
	var list []debug.Module
	for _, path := range slices.Sorted(maps.Keys(found)) {
		list = append(list, found[path])
	}
	return list, nil
}
