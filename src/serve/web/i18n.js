/* What the page says, in each language. t("key", {n: 3}) fills {n}. The page's own marks: data-i18n (text),
 * data-i18n-label (aria-label and title), data-i18n-placeholder. */

const words = {
  en: {
    language: "中文", skip: "Skip to the question", new: "New conversation", conversations: "Conversations", earlier: "Earlier conversations",
    parameters: "Parameters", temperature: "Temperature", top_p: "Top P", max_new_tokens: "Max output tokens",
    image_mode: "Pictures that are not square", mode_default: "As the model does it", mode_pad: "Pad to a square", mode_crop: "Crop", mode_resize: "Stretch",
    theme_auto: "Theme: automatic", theme_light: "Theme: light", theme_dark: "Theme: dark", menu: "Menu", model: "Model", no_model: "No model",
    export: "Export", export_md: "As Markdown", export_json: "As JSON", clear: "Clear", clear_sure: "Delete this conversation?",
    hello: "What do you see?", intro: "Add a picture and ask about it. Drop it anywhere, paste it, or take a photograph.",
    conversation: "Conversation", pictures: "Pictures to send", picture: "Picture", attach: "Add pictures", camera: "Take a photograph",
    question: "Question", placeholder: "Ask about a picture", placeholder_more: "Ask a further question", send: "Send", stop: "Stop", close: "Close", cancel: "Cancel", shoot: "Take it",
    terms: "Answers can be wrong. What you send goes to this server only, which may keep a log of it.",
    drop: "Drop pictures here", remove: "Remove", remove_conversation: "Delete “{title}”", untitled: "Picture", enlarge: "Enlarge picture {n}",
    upvote: "Good answer", downvote: "Bad answer", flag: "Flag this answer", regenerate: "Regenerate", copy: "Copy", copied: "Copied", edit: "Edit", resend: "Send again", voted: "Noted, thank you",
    thinking: "Looking", queued: "Waiting: {n} before you", stopped: "stopped", cut: "cut at {n} tokens",
    timing: "{n} tokens · {rate} tok/s · first after {first} s", you: "You asked", it: "The answer",
    too_large: "“{name}” is larger than {n} MB", not_picture: "“{name}” is not a picture that this browser can read", too_many: "At most {n} pictures in one question",
    too_long: "The question is longer than {n} characters", no_camera: "No camera can be used here",
    failed: "The answer did not come.", failed_offline: "The server cannot be reached. Is the network there?", failed_worker: "No worker is serving “{model}” just now.",
    failed_busy: "Too many people are asking just now.", failed_context: "The conversation is longer than the model can hold. Start a new one.", failed_moderation: "The server's moderation refused this text.", retry: "Try again",
    storage: "This browser keeps no conversations (private window or full disk): they are gone when the page closes.",
  },
  zh: {
    language: "English", skip: "跳到输入框", new: "新对话", conversations: "对话", earlier: "以前的对话",
    parameters: "参数", temperature: "温度", top_p: "Top P", max_new_tokens: "最多输出词元",
    image_mode: "非正方形图片", mode_default: "按模型设定", mode_pad: "补成正方形", mode_crop: "裁剪", mode_resize: "拉伸",
    theme_auto: "外观：跟随系统", theme_light: "外观：浅色", theme_dark: "外观：深色", menu: "菜单", model: "模型", no_model: "没有模型",
    export: "导出", export_md: "Markdown 文件", export_json: "JSON 文件", clear: "清空", clear_sure: "删除这个对话？",
    hello: "图里有什么？", intro: "放一张图片，然后提问。可以拖进来、粘贴，也可以拍照。",
    conversation: "对话", pictures: "待发送的图片", picture: "图片", attach: "添加图片", camera: "拍照",
    question: "问题", placeholder: "就图片提问", placeholder_more: "继续提问", send: "发送", stop: "停止", close: "关闭", cancel: "取消", shoot: "拍摄",
    terms: "回答可能有误。图片和问题只发送到这台服务器，服务器可能留有记录。",
    drop: "把图片放到这里", remove: "移除", remove_conversation: "删除“{title}”", untitled: "图片", enlarge: "放大第 {n} 张图片",
    upvote: "回答得好", downvote: "回答得不好", flag: "举报这个回答", regenerate: "重新生成", copy: "复制", copied: "已复制", edit: "修改", resend: "重新发送", voted: "已记录，谢谢",
    thinking: "正在看", queued: "排队中：前面还有 {n} 位", stopped: "已停止", cut: "在 {n} 个词元处截断",
    timing: "{n} 词元 · {rate} 词元/秒 · 首词元 {first} 秒", you: "你的问题", it: "回答",
    too_large: "“{name}”超过 {n} MB", not_picture: "“{name}”不是本浏览器能读的图片", too_many: "一个问题最多 {n} 张图片",
    too_long: "问题超过 {n} 个字符", no_camera: "这里用不了摄像头",
    failed: "没有得到回答。", failed_offline: "连不上服务器，网络还在吗？", failed_worker: "现在没有提供“{model}”的工作进程。",
    failed_busy: "现在提问的人太多。", failed_context: "对话超过了模型的上下文长度，请开始新对话。", failed_moderation: "服务器的内容审核拒绝了这段文字。", retry: "再试一次",
    storage: "本浏览器不能保存对话（无痕窗口或磁盘已满），关闭页面后对话会消失。",
  },
};

let language = "en";

export const current = () => language;

export function t(key, values = {}) {
  return (words[language][key] ?? words.en[key] ?? key).replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
}

export function speak(next) {
  language = next in words ? next : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-i18n]")) node.textContent = t(node.dataset.i18n);
  for (const node of document.querySelectorAll("[data-i18n-placeholder]")) node.placeholder = t(node.dataset.i18nPlaceholder);
  for (const node of document.querySelectorAll("[data-i18n-label]")) {
    node.setAttribute("aria-label", t(node.dataset.i18nLabel));
    if (node.tagName === "BUTTON") node.title = t(node.dataset.i18nLabel);
  }
}

export const preferred = () => (navigator.languages ?? [navigator.language]).some(l => /^zh/i.test(l)) ? "zh" : "en";
