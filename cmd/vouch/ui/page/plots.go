package page

import (
	"fmt"
	"html/template"
	"time"

	"github.com/vouchd/vouchd/cmd/vouch/ui/history"
	"github.com/vouchd/vouchd/cmd/vouch/ui/plot"
)

// A figure is one number over the range.
type figure struct {
	Kind  string // of what, for its colour
	Name  string
	Total string
	Most  string
	Plot  template.HTML
	Axis  []string
}

// A stepRow is a step of the range in which something was done.
type stepRow struct {
	When, ISO                           string
	Calls, Leases, SVIDs, Refused, Cost string
}

// plots are small ones side by side: none needs a legend, or colour to be told apart.
func (m *model) plots(f *Facts) {
	v := f.Seen
	w := f.Range.Window(f.Now)
	for _, p := range []struct {
		kind, name string
		of         func(s *history.Sum) uint64
		said       func(n uint64) string
	}{
		{"use", "Calls", func(s *history.Sum) uint64 { return s.Calls }, number},
		{"use", "Leases and SVIDs", func(s *history.Sum) uint64 { return s.Leases + s.SVIDs }, number},
		{"bad", "Refused or failed", func(s *history.Sum) uint64 { return s.Refused + s.Failed }, number},
		{"cost", "Sent and received", (*history.Sum).Bytes, size},
	} {
		values, tips := make([]uint64, len(v.Series)), make([]string, len(v.Series))
		var most uint64
		at := 0
		for i := range v.Series {
			values[i] = p.of(&v.Series[i])
			if values[i] > most {
				most, at = values[i], i
			}
			tips[i] = f.step(w, i) + ": " + p.said(values[i])
		}
		total := p.said(p.of(&v.Total))
		desc := fmt.Sprintf("%s in the last %s", total, f.Range.Title)
		fig := figure{Kind: p.kind, Name: p.name, Total: total, Axis: f.axis(w)}
		if most > 0 {
			desc += fmt.Sprintf("; the most, %s, %s", p.said(most), f.step(w, at))
			fig.Most = p.said(most) + " in " + span(w.Step)
		}
		fig.Plot = plot.Bars{ID: "p" + fmt.Sprint(len(m.Plots)), Title: p.name + " over time", Desc: desc + ". The table below has the numbers.", Values: values, Tips: tips}.SVG()
		m.Plots = append(m.Plots, fig)
	}
	for i := range v.Series {
		s := &v.Series[i]
		if s.Done()+s.Refused+s.Failed == 0 {
			continue
		}
		m.Steps = append(m.Steps, stepRow{
			When: f.step(w, i), ISO: start(w, i).In(f.Now.Location()).Format(time.RFC3339), Calls: number(s.Calls), Leases: number(s.Leases), SVIDs: number(s.SVIDs),
			Refused: number(s.Refused + s.Failed), Cost: size(s.Bytes()),
		})
	}
}

func start(w history.Window, i int) time.Time { return w.From().Add(time.Duration(i) * w.Step) }

// step says which step of the window it is.
func (f *Facts) step(w history.Window, i int) string {
	from := start(w, i).In(f.Now.Location())
	form := "2 Jan 15:04"
	if w.Step*time.Duration(w.Steps) <= 24*time.Hour && from.Format(time.DateOnly) == f.Now.Format(time.DateOnly) {
		form = "15:04"
	}
	return from.Format(form) + "\u2013" + from.Add(w.Step).Format("15:04")
}

// axis is the window's beginning, middle and end.
func (f *Facts) axis(w history.Window) []string {
	form := "15:04"
	if w.Step*time.Duration(w.Steps) > 24*time.Hour {
		form = "2 Jan"
	}
	here := f.Now.Location()
	end := "now"
	if f.Copied {
		end = "end"
	}
	return []string{w.From().In(here).Format(form), start(w, w.Steps/2).In(here).Format(form), end}
}
