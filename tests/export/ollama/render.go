// Renders Go templates with a conversation each, as Ollama does: .Messages holds all messages, without two in a row of
// the same role, and .System the texts of the system messages.
//
// stdin: [{"template": ..., "messages": [{"role": ..., "content": ...}, ...]}, ...]; stdout: the texts.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

type job struct {
	Template string
	Messages []*message
}

func render(j job) string {
	var system []string
	var merged []*message
	for _, m := range j.Messages {
		if m.Role == "system" {
			system = append(system, m.Content)
		}
		if n := len(merged); n > 0 && merged[n-1].Role == m.Role {
			merged[n-1].Content += "\n\n" + m.Content
		} else {
			merged = append(merged, m)
		}
	}
	values := map[string]any{"System": strings.Join(system, "\n\n"), "Messages": merged, "Response": ""}
	var text strings.Builder
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(j.Template))
	if err := parsed.Execute(&text, values); err != nil {
		panic(err)
	}
	return text.String()
}

func main() {
	var jobs []job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		panic(err)
	}
	texts := []string{}
	for _, j := range jobs {
		texts = append(texts, render(j))
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(texts); err != nil {
		panic(err)
	}
}
