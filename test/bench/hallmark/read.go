package hallmark

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Metrics is one reading of /metrics.
type Metrics map[string]*dto.MetricFamily

// Metrics reads them.
func (s *Server) Metrics(ctx context.Context) (Metrics, error) {
	body, status, err := s.get(ctx, "/metrics")
	if err != nil {
		return nil, fmt.Errorf("reading metrics: %w", err)
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("reading metrics: status %d", status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("reading metrics: %w", err)
	}
	return families, nil
}

// Sum adds the values of a counter or gauge, and the counts of a histogram, over
// all series that have the labels given (name, value, name, value …). A metric
// that is not there is 0.
func (m Metrics) Sum(name string, labels ...string) float64 {
	sum := 0.0
	for _, metric := range m[name].GetMetric() {
		if !has(metric, labels) {
			continue
		}
		sum += metric.GetCounter().GetValue() + metric.GetGauge().GetValue() + float64(metric.GetHistogram().GetSampleCount())
	}
	return sum
}

func has(m *dto.Metric, labels []string) bool {
	for i := 0; i+1 < len(labels); i += 2 {
		found := false
		for _, l := range m.GetLabel() {
			found = found || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
		}
		if !found {
			return false
		}
	}
	return true
}

// refusals is the counter of all refusals, by reason.
const refusals = "hallmark_refusals_total"

// Refusals returns how often the server has refused for the reason.
func (m Metrics) Refusals(reason string) float64 { return m.Sum(refusals, "reason", reason) }

// Reasons returns every reason for which the server has refused, with how often.
func (m Metrics) Reasons() map[string]float64 {
	all := map[string]float64{}
	for _, metric := range m[refusals].GetMetric() {
		for _, l := range metric.GetLabel() {
			if v := metric.GetCounter().GetValue(); l.GetName() == "reason" && v > 0 {
				all[l.GetValue()] += v
			}
		}
	}
	return all
}

// Entry is one line of `hallmark ledger query -o json`: what its readers rely on.
type Entry struct {
	Number   uint64    `json:"number"`
	Status   string    `json:"status"`
	Issuance *Issuance `json:"issuance"`
	Refusal  *Refusal  `json:"refusal"`
}

// Issuance is a certificate that was, or may have been, issued.
type Issuance struct {
	ID        string    `json:"id"`
	Time      time.Time `json:"time"`
	Serial    string    `json:"serial"`
	Identity  string    `json:"identity"`
	Namespace string    `json:"namespace"`
	Pod       string    `json:"pod"`
	PodUID    string    `json:"podUID"`
	Door      string    `json:"door"`
	NotAfter  time.Time `json:"notAfter"`
	Images    []Image   `json:"images"`
}

// Image is what was decided of one image.
type Image struct {
	Container string   `json:"container"`
	Image     string   `json:"image"`
	Digest    string   `json:"digest"`
	Verdict   string   `json:"verdict"`
	Reason    string   `json:"reason"`
	Policies  []string `json:"policies"`
}

// Refusal is a refusal of an authenticated caller.
type Refusal struct {
	ID       string    `json:"id"`
	Time     time.Time `json:"time"`
	Count    int       `json:"count"`
	Identity string    `json:"identity"`
	PodUID   string    `json:"podUID"`
	Pod      string    `json:"pod"`
	Door     string    `json:"door"`
	Reason   string    `json:"reason"`
	Object   string    `json:"object"`
	Detail   string    `json:"detail"`
}

// Query runs `hallmark ledger query` with the arguments.
func (s *Server) Query(ctx context.Context, args ...string) ([]Entry, error) {
	out, err := s.Run(ctx, append([]string{"ledger", "query", "-o", "json"}, args...)...)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var e Entry
		if err := d.Decode(&e); err != nil {
			return nil, fmt.Errorf("reading the ledger's answer: %w", err)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// Report is what `hallmark ledger verify -o json` says.
type Report struct {
	Records     uint64   `json:"records"`
	Intents     uint64   `json:"intents"`
	Issued      uint64   `json:"issued"`
	Open        int      `json:"open"`
	Checkpoints int      `json:"checkpoints"`
	Notes       []string `json:"notes"`
	Findings    []string `json:"findings"`
}

// Verify runs `hallmark ledger verify`. The error is also for a ledger that is
// not what it should be.
func (s *Server) Verify(ctx context.Context) (Report, error) {
	var r Report
	out, err := s.Run(ctx, "ledger", "verify", "-o", "json")
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("reading the ledger's report: %w", err)
	}
	return r, nil
}

// Log returns the lines of the log that contain the text, as objects.
func (s *Server) Log(containing string) ([]map[string]any, error) {
	f, err := os.Open(s.LogFile())
	if err != nil {
		return nil, fmt.Errorf("reading the log: %w", err)
	}
	defer f.Close()
	var lines []map[string]any
	scan := bufio.NewScanner(f)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		if !bytes.Contains(scan.Bytes(), []byte(containing)) {
			continue
		}
		var line map[string]any
		if json.Unmarshal(scan.Bytes(), &line) != nil {
			line = map[string]any{"text": scan.Text()} // a panic of the runtime, say
		}
		lines = append(lines, line)
	}
	return lines, scan.Err()
}
