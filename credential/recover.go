package credential

import "fmt"

// recover takes up what the journal holds from before a restart.
func (m *Manager) recover(states map[string][]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, b := range states {
		l, err := decodeLease(id, b)
		if err != nil {
			return err
		}
		m.adopt(l)
		m.usageOf(l, nil).leases++
		m.leases[id] = l
	}
	for _, l := range m.leases {
		m.resume(l)
	}
	return nil
}

// adopt finds the definition that can end a lease. A definition that has come
// to name another upstream cannot. The manager's mu is held.
func (m *Manager) adopt(l *lease) {
	d, ok := m.defs.Get(l.Credential)
	if ok && d.Broker == l.Broker && d.Traits.Upstream == l.Upstream {
		l.source = d
		d.leases++
	}
}

// resume goes on with a lease where the daemon stopped. The manager's mu is
// held.
func (m *Manager) resume(l *lease) {
	switch l.State {
	case Planned:
		m.end(l, "vouchd stopped before the upstream had answered")
		return
	case Active:
	default:
		m.end(l, l.Reason)
		return
	}
	left := l.Expires.Sub(m.now())
	switch {
	case l.source == nil:
		m.end(l, "credential is no longer defined")
	case left <= 0:
		m.end(l, "expired")
	case l.Bind == BindLease || m.rewatch(l):
		// Should the clock have been set back, the lease still has no more
		// than what it was granted with.
		m.scheduleIn(l, min(left, l.Latest.Sub(l.Granted)))
	}
}

// rewatch watches the process or unit of a lease again. It ends the lease, and
// returns false, if that is gone or cannot be told to be there. The manager's mu
// is held.
func (m *Manager) rewatch(l *lease) bool {
	end, alive, err := m.processes.Find(l.Process, l.Bind)
	switch {
	case err != nil:
		m.end(l, clip(fmt.Sprintf("looking for its %s: %v", l.Bind, err), maxReason))
		return false
	case !alive:
		m.end(l, fmt.Sprintf("%s ended while vouchd was not running", l.Bind))
		return false
	}
	m.watchHolder(l, end)
	return true
}

// SetDefinitions puts other definitions into force. Leases of credentials that
// are no longer defined are ended; the others stay, and are ended by the
// definition that granted them.
func (m *Manager) SetDefinitions(defs *Definitions) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.defs
	m.defs = defs
	for _, l := range m.leases {
		if l.source == nil {
			if m.adopt(l); l.source != nil {
				m.end(l, l.Reason)
			}
			continue
		}
		if _, ok := defs.Get(l.Credential); !ok {
			m.end(l, "credential was removed from the configuration")
		}
	}
	for _, d := range old.All() {
		m.retire(d)
	}
}
