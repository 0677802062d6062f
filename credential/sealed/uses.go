package sealed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// saveEvery is how often uses are written down at most. What a crash loses of
// them is in the attestation log, which has every use before it happens.
const saveEvery = 10 * time.Second

// A use sums up who used a secret.
type use struct {
	Last  time.Time            `json:"last"`
	Count uint64               `json:"count"`
	By    map[string]time.Time `json:"by"` // when each SPIFFE ID did last
}

// note counts a use.
func (s *Store) note(name string, by spiffeid.ID) {
	s.using.Lock()
	defer s.using.Unlock()
	u := s.uses[name]
	if u == nil || u.By == nil {
		u = &use{By: make(map[string]time.Time)}
		s.uses[name] = u
	}
	now := s.now().UTC().Truncate(time.Second)
	u.Last, u.By[by.String()] = now, now
	u.Count++
	for len(u.By) > maxUsers {
		oldest := ""
		for id, at := range u.By {
			if oldest == "" || at.Before(u.By[oldest]) {
				oldest = id
			}
		}
		delete(u.By, oldest)
	}
	if now.Sub(s.saved).Abs() >= saveEvery {
		s.saveUses() // else the next use or Close tries again
	}
}

func (s *Store) forgetUses(name string) {
	s.using.Lock()
	defer s.using.Unlock()
	delete(s.uses, name)
	s.saveUses()
}

// saveUses is called with using held.
func (s *Store) saveUses() error {
	if s.broken != nil {
		return nil
	}
	data, err := json.Marshal(s.uses)
	if err != nil {
		return err
	}
	s.saved = s.now()
	return s.files.Save(usesFile, fileFormat, data)
}

func (s *Store) loadUses() error {
	s.uses = make(map[string]*use)
	data, _, err := s.files.Load(usesFile, fileFormat)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, &s.uses)
	}
	if err != nil {
		return fmt.Errorf("reading who used which secret: %w; move the file %s away to begin anew", err, usesFile)
	}
	return nil
}
