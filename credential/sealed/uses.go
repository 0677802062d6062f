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
	now := s.now().UTC().Truncate(time.Second)
	s.mu.Lock()
	u := s.uses[name]
	if u == nil || u.By == nil {
		u = &use{By: make(map[string]time.Time)}
		s.uses[name] = u
	}
	u.Last, u.By[by.String()] = now, now
	u.Count++
	for len(u.By) > maxUsers {
		delete(u.By, u.oldest())
	}
	due := now.Sub(s.saved).Abs() >= saveEvery
	s.mu.Unlock()
	if due {
		s.saveUses() // else the next use or Close tries again
	}
}

// oldest is who used it longest ago.
func (u *use) oldest() (id string) {
	for other, at := range u.By {
		if id == "" || at.Before(u.By[id]) {
			id = other
		}
	}
	return id
}

func (s *Store) forgetUses(name string) error {
	s.mu.Lock()
	delete(s.uses, name)
	s.mu.Unlock()
	return s.saveUses()
}

func (s *Store) saveUses() error {
	if s.broken != nil {
		return nil
	}
	s.saving.Lock()
	defer s.saving.Unlock()
	s.mu.Lock()
	data, err := json.Marshal(s.uses)
	s.saved = s.now()
	s.mu.Unlock()
	if err != nil {
		return err
	}
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
