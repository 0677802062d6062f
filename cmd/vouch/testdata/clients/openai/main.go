// Program openai streams a completion.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/openai/openai-go/v3"
)

func main() {
	log.SetFlags(0)
	c := openai.NewClient()
	stream := c.Chat.Completions.NewStreaming(context.Background(), openai.ChatCompletionNewParams{
		Model: "gpt-5-mini", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("x")},
	})
	for stream.Next() {
		if choices := stream.Current().Choices; len(choices) > 0 {
			fmt.Print(choices[0].Delta.Content)
		}
	}
	if err := stream.Err(); err != nil {
		log.Fatal(err)
	}
	fmt.Println()
	_, err := c.Files.List(context.Background(), openai.FileListParams{})
	if e := (*openai.Error)(nil); errors.As(err, &e) {
		fmt.Println(e.StatusCode, e.Message)
	}
}
